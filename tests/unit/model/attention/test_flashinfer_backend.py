"""What FlashInfer is asked to compute is what the step says: checked with a stand-in for it."""

import sys
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tests.unit.model.attention import flashinfer_double
from tests.unit.model.attention.backend_contract import random_cases
from tests.unit.model.attention.paged_case import PagedCase, make_case
from tokasaurus.errors import ConfigError
from tokasaurus.ipc.messages.to_worker import HydragenGroup
from tokasaurus.model.attention import flashinfer_backend
from tokasaurus.model.attention.backend import AttentionBatch, AttentionLayer
from tokasaurus.model.attention.flashinfer_backend import FlashInferBackend
from tokasaurus.model.attention.flashinfer_plan import (
    plan_appends,
    plan_attention,
    prefill_variant,
    uses_tensor_cores,
)

CPU = torch.device("cpu")
BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def flashinfer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", flashinfer_double)
    spec = ModuleSpec("flashinfer", None)
    monkeypatch.setattr(flashinfer_double, "__spec__", spec)
    monkeypatch.setattr(flashinfer_backend, "_WORKSPACE_BYTES", 64)


def make_backend(case: PagedCase, **options: Any) -> FlashInferBackend:
    return FlashInferBackend(
        (case.layer,), page_size=case.page_size, dtype=BF16, device=CPU, **options
    )


@given(
    random_cases(
        page_sizes=[1, 4, 16],
        group_sizes=[1, 4],
        head_dims=[64],
        max_prefill_len=40,
        max_decode_len=40,
        sinks=False,
    )
)
@settings(max_examples=40)
def test_any_batch(arguments: dict[str, Any]) -> None:
    if not arguments["prefill"] and not arguments["decode"]:
        return
    case = make_case(**arguments).rounded_to(BF16)
    out = case.run(make_backend(case), BF16)
    torch.testing.assert_close(out.double(), case.expected(), atol=3e-2, rtol=3e-2)


def test_a_prefix_is_read_once_for_the_whole_group() -> None:
    case = make_case(
        seed=1,
        prefill=[(5, 3)],
        decode=[7, 20, 30, 18],
        page_size=4,
        num_kv_heads=1,
        group_size=4,
        head_dim=64,
        shared=(1, 3, 4),
    )
    plan = plan_attention(case.batch, 4, 0)
    assert plan.num_prefill_tokens == 3
    assert plan.prefix is not None
    assert plan.decode is not None
    assert plan.prefix.qo_indptr.tolist() == [0, 3]
    assert plan.prefix.kv_indices.tolist() == case.row_blocks(2)[:4].tolist()
    assert plan.prefix_queries == slice(1, 4)
    assert np.diff(plan.decode.kv_indptr).tolist() == [2, 1, 4, 1]
    assert plan_attention(case.batch, 4, 30).prefix is not None
    assert plan_attention(case.batch, 4, 29).prefix is None
    case.batch.hydragen_groups = [HydragenGroup(0, 1, 1), HydragenGroup(2, 2, 2)]
    queries = plan_attention(case.batch, 4, 0).prefix_queries
    assert isinstance(queries, np.ndarray)
    assert queries.tolist() == [0, 2, 3]


def test_appends() -> None:
    case = make_case(
        seed=2,
        prefill=[(9, 4)],
        decode=[8],
        page_size=4,
        num_kv_heads=1,
        group_size=1,
        head_dim=64,
    )
    appends = plan_appends(case.batch, 4)
    assert appends.batch_indices.tolist() == [0, 0, 0, 0, 1]
    assert appends.positions.tolist() == [5, 6, 7, 8, 7]
    assert appends.rows.kv_last_page_len.tolist() == [1, 4]
    blocks = appends.rows.kv_indices[
        appends.rows.kv_indptr[appends.batch_indices] + appends.positions // 4
    ]
    assert (blocks * 4 + appends.positions % 4).tolist() == case.batch.slot_mapping.tolist()


def test_plans_for_graphs_stay_where_they_are() -> None:
    case = make_case(
        seed=3,
        prefill=[],
        decode=[7, 20, 3],
        page_size=4,
        num_kv_heads=1,
        group_size=4,
        head_dim=64,
    )
    backend = make_backend(case)
    backend.allocate(case.num_blocks)
    case.fill_cache(backend, BF16)
    assert backend.scratch_block == case.num_blocks
    backend.reserve_graphs([3, 1], 100)
    backend.plan_for_graph(case.batch)
    buffers = backend._buffers[3]
    assert backend._append[2] is buffers.kv_indices
    key, value = case.step_kv()
    out = backend.run(case.queries.to(BF16), key.to(BF16), value.to(BF16), case.layer)
    torch.testing.assert_close(out.double(), case.expected(), atol=3e-2, rtol=3e-2)
    wrapper = backend._planned[backend._kinds[0]].decode
    backend.plan_for_graph(case.batch)
    assert backend._planned[backend._kinds[0]].decode is wrapper
    assert buffers.kv_indptr.tolist() == case.batch.block_indptr.tolist()


def test_fp8_cache() -> None:
    case = make_case(
        seed=4,
        prefill=[(30, 30)],
        decode=[9],
        page_size=4,
        num_kv_heads=1,
        group_size=1,
        head_dim=64,
    )
    backend = make_backend(case, kv_dtype=torch.float8_e4m3fn)
    half = make_backend(case)
    assert 2 * backend.kv_bytes_per_block() == half.kv_bytes_per_block()
    assert not backend._storable(torch.full((1, 1, 64), 1e6)).float().isnan().any()
    out = case.run(backend, BF16)
    torch.testing.assert_close(out.double(), case.expected(), atol=0.3, rtol=0.1)


def test_choice_of_kernels() -> None:
    assert prefill_variant((9, 0), 128, BF16, BF16) == "fa3"
    assert prefill_variant((9, 0), 80, BF16, BF16) == "fa2"
    assert prefill_variant((9, 0), 128, BF16, torch.float8_e4m3fn) == "fa2"
    assert prefill_variant((8, 0), 128, BF16, BF16) == "fa2"
    assert prefill_variant((10, 0), 128, BF16, BF16) == "fa2"
    assert uses_tensor_cores(32, 8, 64)
    assert not uses_tensor_cores(32, 16, 64)
    assert not uses_tensor_cores(32, 8, 1024)


@pytest.mark.parametrize(
    ("changes", "dtype", "reason"),
    [
        ({}, torch.float32, "bfloat16 and float16"),
        ({"head_dim": 80}, BF16, "heads of 80"),
        ({"sinks_N": torch.zeros(1)}, BF16, "sinks"),
    ],
)
def test_what_it_can_not_do_is_refused(
    changes: dict[str, Any], dtype: torch.dtype, reason: str
) -> None:
    arguments = {"index": 0, "num_heads": 1, "num_kv_heads": 1, "head_dim": 64, "scale": 1.0}
    layer = AttentionLayer(**{**arguments, **changes})
    with pytest.raises(ConfigError, match=reason):
        FlashInferBackend((layer,), page_size=4, dtype=dtype, device=CPU)


def test_it_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    with pytest.raises(ConfigError, match="tokasaurus\\[cuda\\]"):
        FlashInferBackend((), page_size=4, dtype=BF16, device=CPU)


def test_a_lone_decode_has_neither_prefill_nor_prefix() -> None:
    batch = AttentionBatch(
        num_prefill_rows=0,
        query_lens=np.ones(1, np.int32),
        kv_lens=np.array([1], np.int32),
        block_indptr=np.array([0, 1], np.int32),
        block_ids=np.zeros(1, np.int32),
        slot_mapping=np.zeros(1, np.int64),
    )
    plan = plan_attention(batch, 4, 0)
    assert plan.decode is not None
    assert plan.decode.num_rows == plan.decode.num_queries == 1
    assert plan.num_prefill_tokens == 0
    assert plan.prefill is None
    assert plan.prefix is None
