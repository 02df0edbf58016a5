"""The torch backend equals a float64 oracle, whatever the shapes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.model.attention.paged_case import PagedCase, make_case
from tokasaurus.model.attention import torch_backend
from tokasaurus.model.attention.backend import AttentionBatch, AttentionLayer
from tokasaurus.model.attention.torch_backend import TorchBackend

TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 3e-2}


def make_backend(case: PagedCase, dtype: torch.dtype = torch.float32) -> TorchBackend:
    return TorchBackend(
        (case.layer,), page_size=case.page_size, dtype=dtype, device=torch.device("cpu")
    )


def check(case: PagedCase, dtype: torch.dtype = torch.float32) -> None:
    out = case.run(make_backend(case, dtype), dtype)
    assert out.dtype == dtype
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(out.double(), case.expected(), atol=tolerance, rtol=tolerance)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    page_size = draw(st.sampled_from([1, 2, 3, 8, 16, 64]))
    prefill = []
    for _ in range(draw(st.integers(0, 3))):
        kv_len = draw(st.integers(1, 70))
        prefill.append((kv_len, draw(st.integers(1, kv_len))))
    decode = draw(st.lists(st.integers(1, 90), max_size=5))
    shared = None
    if draw(st.booleans()):
        num_blocks = draw(st.integers(1, 4))
        tails = draw(st.lists(st.integers(1, 40), min_size=2, max_size=4))
        shared = (len(decode), len(tails), num_blocks)
        decode = [*decode, *(num_blocks * page_size + tail for tail in tails)]
        decode = decode + draw(st.lists(st.integers(1, 9), max_size=2))
    return {
        "seed": draw(st.integers(0, 2**31)),
        "prefill": prefill,
        "decode": decode,
        "page_size": page_size,
        "num_kv_heads": draw(st.integers(1, 3)),
        "group_size": draw(st.sampled_from([1, 2, 4, 7])),
        "head_dim": draw(st.sampled_from([8, 32, 64, 80])),
        "shared": shared,
        "sliding_window": draw(st.none() | st.integers(1, 100)),
        "logit_softcap": draw(st.none() | st.just(5.0)),
        "sinks": draw(st.booleans()),
    }


@settings(max_examples=120, deadline=None)
@given(cases())
def test_equals_oracle(arguments: dict[str, Any]) -> None:
    check(make_case(**arguments), torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_storage_dtypes(dtype: torch.dtype) -> None:
    check(
        make_case(
            seed=1,
            prefill=[(40, 40), (33, 5)],
            decode=[1, 17, 64],
            page_size=16,
            num_kv_heads=2,
            group_size=3,
            head_dim=64,
        ),
        dtype,
    )


@pytest.mark.parametrize("sliding_window", [None, 37])
def test_small_tiles(monkeypatch: pytest.MonkeyPatch, sliding_window: int | None) -> None:
    """Keys and queries split over many tiles still give one softmax."""
    monkeypatch.setattr(torch_backend, "_MAX_GATHERED", 64)
    monkeypatch.setattr(torch_backend, "_MAX_SCORES", 64)
    arguments: dict[str, Any] = {
        "seed": 3,
        "prefill": [(150, 90), (70, 70)],
        "decode": [3, 140, 139, 100, 60],
        "page_size": 4,
        "num_kv_heads": 2,
        "group_size": 2,
        "head_dim": 16,
        "shared": (1, 3, 24),
        "sliding_window": sliding_window,
        "sinks": True,
    }
    check(make_case(**arguments), torch.float64)


def test_hydragen_equals_plain() -> None:
    case = make_case(
        seed=4,
        prefill=[(9, 4)],
        decode=[5, 50, 61, 70, 8],
        page_size=8,
        num_kv_heads=2,
        group_size=2,
        head_dim=32,
        shared=(1, 3, 5),
        sinks=True,
    )
    grouped = case.run(make_backend(case, torch.float64), torch.float64)
    case.batch = replace(case.batch, hydragen_groups=[])
    plain = case.run(make_backend(case, torch.float64), torch.float64)
    torch.testing.assert_close(grouped, plain, atol=1e-12, rtol=1e-12)


def test_rows_read_what_the_same_step_writes() -> None:
    """A prefill row may share a block that an earlier row of the same step fills."""
    case = make_case(
        seed=5,
        prefill=[(16, 16), (20, 4)],
        decode=[17],
        page_size=8,
        num_kv_heads=1,
        group_size=1,
        head_dim=16,
    )
    ids = case.batch.block_ids
    ids[2:4] = ids[0:2]
    ids[5:7] = ids[0:2]
    for row in (1, 2):
        case.keys[row][:16] = case.keys[0]
        case.values[row][:16] = case.values[0]
    backend = make_backend(case, torch.float64)
    backend.allocate(case.num_blocks)
    backend.plan(case.batch)
    key, value = case.step_kv()
    out = backend.run(case.queries, key, value, case.layer)
    torch.testing.assert_close(out, case.expected(), atol=1e-11, rtol=1e-11)


def test_nan_of_another_sequence_does_not_leak() -> None:
    """Stale NaNs behind a row's last token and in other rows' blocks stay where they are."""
    case = make_case(
        seed=6,
        prefill=[(5, 5)],
        decode=[3, 11, 30],
        page_size=8,
        num_kv_heads=1,
        group_size=2,
        head_dim=16,
    )
    backend = make_backend(case, torch.float64)
    backend.allocate(case.num_blocks)
    for cache in backend._caches[0]:
        cache.fill_(torch.nan)
    case.fill_cache(backend, torch.float64)
    case.keys[3][:] = torch.nan
    backend.plan(case.batch)
    key, value = case.step_kv()
    out = backend.run(case.queries, key, value, case.layer)
    torch.testing.assert_close(out[:-1], case.expected()[:-1], atol=1e-11, rtol=1e-11)
    assert out[-1].isnan().all()


def test_empty_batch() -> None:
    case = make_case(
        seed=0, prefill=[], decode=[], page_size=4, num_kv_heads=1, group_size=1, head_dim=8
    )
    assert case.run(make_backend(case), torch.float32).shape == (0, 1, 8)


def test_layers_of_different_sizes() -> None:
    layers = tuple(
        AttentionLayer(index=i, num_heads=4, num_kv_heads=k, head_dim=h, scale=1.0)
        for i, (k, h) in enumerate([(4, 8), (1, 64)])
    )
    backend = TorchBackend(layers, page_size=2, dtype=torch.float32, device=torch.device("cpu"))
    assert backend.kv_bytes_per_block() == 2 * 2 * 4 * (4 * 8 + 64)
    backend.allocate(2)
    backend.plan(
        AttentionBatch(
            num_prefill_rows=1,
            query_lens=np.array([1], np.int32),
            kv_lens=np.array([1], np.int32),
            block_indptr=np.array([0, 1], np.int32),
            block_ids=np.array([1], np.int32),
            slot_mapping=np.array([2], np.int64),
        )
    )
    for layer in layers:
        q, kv = (
            torch.randn(1, 4, layer.head_dim),
            torch.randn(1, layer.num_kv_heads, layer.head_dim),
        )
        out = backend.run(q, kv, kv, layer)
        torch.testing.assert_close(out, kv.expand(1, 4, layer.head_dim))
