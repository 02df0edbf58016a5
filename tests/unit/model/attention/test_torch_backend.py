"""The torch backend equals a float64 oracle, whatever the shapes."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tests.examples import examples
from tests.unit.model.attention.backend_contract import (
    check_an_empty_batch,
    check_nan_stays_in_its_row,
    check_oracle,
    check_rows_read_what_their_step_writes,
    check_shared_blocks_change_nothing,
    random_cases,
)
from tests.unit.model.attention.paged_case import PagedCase, make_case
from tokasaurus.model.attention import torch_backend
from tokasaurus.model.attention.backend import AttentionBatch, AttentionLayer
from tokasaurus.model.attention.torch_backend import TorchBackend

TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 3e-2}


def make_backend(case: PagedCase, dtype: torch.dtype = torch.float64) -> TorchBackend:
    return TorchBackend(
        (case.layer,), page_size=case.page_size, dtype=dtype, device=torch.device("cpu")
    )


def check(case: PagedCase, dtype: torch.dtype) -> None:
    check_oracle(case, partial(make_backend, dtype=dtype), dtype, TOLERANCE[dtype])


@settings(max_examples=examples(50, searching=200))
@given(
    random_cases(
        page_sizes=[1, 2, 3, 8, 16, 64],
        group_sizes=[1, 2, 4, 7],
        head_dims=[8, 32, 64, 80],
        max_prefill_len=70,
        max_decode_len=90,
    )
)
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
    check_shared_blocks_change_nothing(make_backend, torch.float64, 1e-12)


def test_rows_read_what_the_same_step_writes() -> None:
    check_rows_read_what_their_step_writes(make_backend, torch.float64, 1e-11)


def test_nan_of_another_sequence_does_not_leak() -> None:
    check_nan_stays_in_its_row(make_backend, torch.float64, 1e-11)


def test_empty_batch() -> None:
    check_an_empty_batch(make_backend, torch.float64)


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
