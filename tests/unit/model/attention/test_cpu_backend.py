"""The CPU kernels' attention equals a float64 oracle, in every build flavour."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernel_flavours import FLAVOURS, kernels_of
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


def check(case: PagedCase, dtype: torch.dtype, kernels: Kernels) -> None:
    out = case.run(make_backend(case, dtype, kernels), dtype)
    assert out.dtype == dtype
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(out.double(), case.expected(), atol=tolerance, rtol=tolerance)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    page_size = draw(st.sampled_from([1, 2, 3, 8, 16, 24, 32, 64, 100, 128]))
    prefill = []
    for _ in range(draw(st.integers(0, 3))):
        kv_len = draw(st.integers(1, 150))
        prefill.append((kv_len, draw(st.integers(1, kv_len))))
    decode = draw(st.lists(st.integers(1, 300), max_size=5))
    shared = None
    if draw(st.booleans()):
        num_blocks = draw(st.integers(1, 4))
        tails = draw(st.lists(st.integers(1, 40), min_size=2, max_size=6))
        shared = (len(decode), len(tails), num_blocks)
        decode = [*decode, *(num_blocks * page_size + tail for tail in tails)]
        decode = decode + draw(st.lists(st.integers(1, 9), max_size=2))
    return {
        "seed": draw(st.integers(0, 2**31)),
        "prefill": prefill,
        "decode": decode,
        "page_size": page_size,
        "num_kv_heads": draw(st.integers(1, 3)),
        "group_size": draw(st.sampled_from([1, 2, 3, 4, 6, 7, 8, 13, 16])),
        "head_dim": draw(st.sampled_from([8, 32, 40, 64, 80, 96, 128, 256])),
        "shared": shared,
        "sliding_window": draw(st.none() | st.integers(1, 300)),
        "logit_softcap": draw(st.none() | st.just(5.0)),
        "sinks": draw(st.booleans()),
    }


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(arguments=cases(), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
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


def test_hydragen_equals_plain(kernels: Kernels) -> None:
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
    grouped = case.run(make_backend(case, torch.float32, kernels), torch.float32)
    case.batch = replace(case.batch, hydragen_groups=[])
    plain = case.run(make_backend(case, torch.float32, kernels), torch.float32)
    torch.testing.assert_close(grouped, plain, atol=1e-5, rtol=1e-5)


def test_rows_read_what_the_same_step_writes(kernels: Kernels) -> None:
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
    backend = make_backend(case, torch.float32, kernels)
    backend.allocate(case.num_blocks)
    backend.plan(case.batch)
    key, value = case.step_kv()
    out = backend.run(case.queries.float(), key.float(), value.float(), case.layer)
    torch.testing.assert_close(out.double(), case.expected(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("page_size", [3, 16, 128])
def test_nan_of_another_sequence_does_not_leak(
    kernels: Kernels, dtype: torch.dtype, page_size: int
) -> None:
    """Stale NaNs behind a row's last token and in other rows' blocks stay where they are."""
    case = make_case(
        seed=6,
        prefill=[(5, 5)],
        decode=[3, 11, 30],
        page_size=page_size,
        num_kv_heads=1,
        group_size=2,
        head_dim=24,
    )
    backend = make_backend(case, dtype, kernels)
    backend.allocate(case.num_blocks)
    for cache in backend._caches[0]:
        cache.fill_(torch.nan)
    case.fill_cache(backend, dtype)
    case.keys[3][:] = torch.nan
    backend.plan(case.batch)
    key, value = (x.to(dtype) for x in case.step_kv())
    out = backend.run(case.queries.to(dtype), key, value, case.layer).double()
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(out[:-1], case.expected()[:-1], atol=tolerance, rtol=tolerance)
    assert out[-1].isnan().all()


def test_empty_batch(kernels: Kernels) -> None:
    case = make_case(
        seed=0, prefill=[], decode=[], page_size=4, num_kv_heads=1, group_size=1, head_dim=8
    )
    assert case.run(make_backend(case, torch.float32, kernels), torch.float32).shape == (0, 1, 8)


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
