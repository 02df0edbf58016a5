"""The CPU kernels' attention equals a float64 oracle, in every build flavour."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernel_flavours import FLAVOURS, kernels_of
from tests.unit.model.attention.backend_contract import (
    MakeBackend,
    check_an_empty_batch,
    check_nan_stays_in_its_row,
    check_oracle,
    check_rows_read_what_their_step_writes,
    check_shared_blocks_change_nothing,
    random_cases,
)
from tests.unit.model.attention.paged_case import PagedCase, make_case
from tokasaurus.errors import ConfigError
from tokasaurus.model.attention.backend import AttentionBatch, AttentionLayer
from tokasaurus.model.attention.cpu_backend import CpuBackend
from tokasaurus.model.kernels.loader import Kernels

TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 3e-2}
CPU = torch.device("cpu")


@pytest.fixture(params=FLAVOURS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return kernels_of(request.param)


def make_backend(case: PagedCase, dtype: torch.dtype, kernels: Kernels) -> CpuBackend:
    return CpuBackend(
        (case.layer,), page_size=case.page_size, dtype=dtype, device=CPU, kernels=kernels
    )


def making(dtype: torch.dtype, kernels: Kernels) -> MakeBackend:
    return partial(make_backend, dtype=dtype, kernels=kernels)


def check(case: PagedCase, dtype: torch.dtype, kernels: Kernels) -> None:
    check_oracle(case, making(dtype, kernels), dtype, TOLERANCE[dtype])


@settings(max_examples=100)
@given(
    arguments=random_cases(
        page_sizes=[1, 2, 3, 8, 16, 24, 32, 64, 100, 128],
        group_sizes=[1, 2, 3, 4, 6, 7, 8, 13, 16],
        head_dims=[8, 32, 40, 64, 80, 96, 128, 256],
        max_prefill_len=150,
        max_decode_len=300,
    ),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_equals_oracle(kernels: Kernels, arguments: dict[str, Any], dtype: torch.dtype) -> None:
    check(make_case(**arguments).rounded_to(dtype), dtype, kernels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_long_rows_are_split_and_merged(
    kernels: Kernels, dtype: torch.dtype, num_threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        for sinks in (False, True):
            case = make_case(
                seed=3,
                prefill=[(700, 5)],
                decode=[1500, 3],
                page_size=16,
                num_kv_heads=1,
                group_size=3,
                head_dim=64,
                sinks=sinks,
            )
            backend = make_backend(case, dtype, kernels)
            check(case, dtype, kernels)
            backend.plan(case.batch)
            assert len(next(iter(backend._plans.values()))[1]) > 0
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("page_size", [8, 16, 24, 32])
@pytest.mark.parametrize("num_kv_heads", [1, 3])
def test_long_rows_are_read_in_several_streams(
    kernels: Kernels, dtype: torch.dtype, page_size: int, num_kv_heads: int
) -> None:
    """Rows of many tiles, whose scores grow by more than outputs are let to before a rescale."""
    factor = 8
    for options in ({}, {"sliding_window": 700}, {"sliding_window": 2000}, {"logit_softcap": 30.0}):
        case = make_case(
            seed=11,
            prefill=[(900, 2)],
            decode=[1201, 640],
            page_size=page_size,
            num_kv_heads=num_kv_heads,
            group_size=3,
            head_dim=64,
            **options,
        )
        case.queries *= factor
        case = case.rounded_to(dtype)
        # Rounding of scores, and so of what is relative to them, grows with the queries.
        check_oracle(case, making(dtype, kernels), dtype, factor * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_repeated_step_gives_the_same_bits(kernels: Kernels, dtype: torch.dtype) -> None:
    """Whichever thread takes an item, and in whatever order."""
    before = torch.get_num_threads()
    case = make_case(
        seed=5,
        prefill=[(150, 30)],
        decode=[900, 2, 65, 300],
        page_size=16,
        num_kv_heads=3,
        group_size=3,
        head_dim=64,
    )
    try:
        for num_threads in (1, 2, 5):
            torch.set_num_threads(num_threads)
            backend = make_backend(case, dtype, kernels)
            first = case.run(backend, dtype)
            key, value = (x.to(dtype) for x in case.step_kv())
            for _ in range(10):
                again = backend.run(case.queries.to(dtype), key, value, case.layer)
                assert torch.equal(again, first)
    finally:
        torch.set_num_threads(before)


def test_hydragen_equals_plain(kernels: Kernels) -> None:
    check_shared_blocks_change_nothing(making(torch.float32, kernels), torch.float32, 1e-5)


def test_rows_read_what_the_same_step_writes(kernels: Kernels) -> None:
    check_rows_read_what_their_step_writes(making(torch.float32, kernels), torch.float32, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("page_size", [3, 16, 128])
def test_nan_of_another_sequence_does_not_leak(
    kernels: Kernels, dtype: torch.dtype, page_size: int
) -> None:
    check_nan_stays_in_its_row(making(dtype, kernels), dtype, TOLERANCE[dtype], page_size)


def test_empty_batch(kernels: Kernels) -> None:
    check_an_empty_batch(making(torch.float32, kernels), torch.float32)


def test_views_of_one_product(kernels: Kernels) -> None:
    """q, k and v may be slices of a fused projection's output."""
    case = make_case(
        seed=8,
        prefill=[(20, 20)],
        decode=[],
        page_size=16,
        num_kv_heads=2,
        group_size=2,
        head_dim=32,
    )
    key, value = case.step_kv()
    fused = torch.cat([x.float().flatten(1) for x in (case.queries, key, value)], dim=1)
    q, k, v = fused.split([128, 64, 64], dim=1)
    backend = make_backend(case, torch.float32, kernels)
    backend.allocate(case.num_blocks)
    backend.plan(case.batch)
    out = backend.run(q.view(-1, 4, 32), k.view(-1, 2, 32), v.view(-1, 2, 32), case.layer)
    torch.testing.assert_close(out.double(), case.expected(), atol=1e-5, rtol=1e-5)


def test_bytes_per_block() -> None:
    layers = tuple(
        AttentionLayer(index=i, num_heads=4, num_kv_heads=2, head_dim=64, scale=1.0)
        for i in range(3)
    )
    backend = CpuBackend(layers, page_size=16, dtype=torch.bfloat16, device=CPU)
    assert backend.kv_bytes_per_block() == 3 * 2 * 2 * 64 * 16 * 2


def test_half_precision_is_refused_by_name() -> None:
    layer = AttentionLayer(index=0, num_heads=4, num_kv_heads=2, head_dim=64, scale=1.0)
    with pytest.raises(ConfigError, match="float16"):
        CpuBackend((layer,), page_size=16, dtype=torch.float16, device=CPU)


def test_layers_of_different_windows(kernels: Kernels) -> None:
    case = make_case(
        seed=9,
        prefill=[(40, 40)],
        decode=[],
        page_size=8,
        num_kv_heads=1,
        group_size=2,
        head_dim=16,
    )
    windowed = replace(case.layer, index=1, sliding_window=7)
    backend = CpuBackend(
        (case.layer, windowed), page_size=8, dtype=torch.float32, device=CPU, kernels=kernels
    )
    backend.allocate(case.num_blocks)
    batch: AttentionBatch = case.batch
    backend.plan(batch)
    key, value = case.step_kv()
    for layer in (case.layer, windowed):
        out = backend.run(case.queries.float(), key.float(), value.float(), layer)
        case.layer = layer
        torch.testing.assert_close(out.double(), case.expected(), atol=1e-5, rtol=1e-5)
    assert np.array_equal(batch.query_lens, [40])
