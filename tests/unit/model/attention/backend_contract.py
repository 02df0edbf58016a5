"""What every attention backend has to hold: random batches, and checks of one that a test makes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st

from tests.unit.model.attention.paged_case import PagedCase, make_case

MakeBackend = Callable[[PagedCase], Any]
"""A backend for the case's layer and page size, in the dtype of the check."""


@st.composite
def random_cases(
    draw: st.DrawFn,
    *,
    page_sizes: list[int],
    group_sizes: list[int],
    head_dims: list[int],
    max_prefill_len: int,
    max_decode_len: int,
    sinks: bool = True,
) -> dict[str, Any]:
    """Arguments of `make_case`: prefills and decodes, of which some may share blocks."""
    page_size = draw(st.sampled_from(page_sizes))
    prefill = []
    for _ in range(draw(st.integers(0, 3))):
        kv_len = draw(st.integers(1, max_prefill_len))
        prefill.append((kv_len, draw(st.integers(1, kv_len))))
    decode = draw(st.lists(st.integers(1, max_decode_len), max_size=5))
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
        "group_size": draw(st.sampled_from(group_sizes)),
        "head_dim": draw(st.sampled_from(head_dims)),
        "shared": shared,
        "sliding_window": draw(st.none() | st.integers(1, max_decode_len + 10)),
        "logit_softcap": draw(st.none() | st.just(5.0)),
        "sinks": sinks and draw(st.booleans()),
    }


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual.double(), expected, atol=tolerance, rtol=tolerance)


def check_oracle(
    case: PagedCase, make_backend: MakeBackend, dtype: torch.dtype, tolerance: float
) -> None:
    out = case.run(make_backend(case), dtype)
    assert out.dtype == dtype
    assert_near(out, case.expected(), tolerance)


def check_shared_blocks_change_nothing(
    make_backend: MakeBackend, dtype: torch.dtype, tolerance: float
) -> None:
    """Hydragen groups give what their rows give one by one."""
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
    grouped = case.run(make_backend(case), dtype)
    case.batch = replace(case.batch, hydragen_groups=[])
    plain = case.run(make_backend(case), dtype)
    assert_near(grouped, plain.double(), tolerance)


def check_rows_read_what_their_step_writes(
    make_backend: MakeBackend, dtype: torch.dtype, tolerance: float
) -> None:
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
    backend = make_backend(case)
    backend.allocate(case.num_blocks)
    backend.plan(case.batch)
    key, value = (x.to(dtype) for x in case.step_kv())
    out = backend.run(case.queries.to(dtype), key, value, case.layer)
    assert_near(out, case.expected(), tolerance)


def check_nan_stays_in_its_row(
    make_backend: MakeBackend, dtype: torch.dtype, tolerance: float, page_size: int = 8
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
    backend = make_backend(case)
    backend.allocate(case.num_blocks)
    for cache in backend._caches[0]:
        cache.fill_(torch.nan)
    case.fill_cache(backend, dtype)
    case.keys[3][:] = torch.nan
    backend.plan(case.batch)
    key, value = (x.to(dtype) for x in case.step_kv())
    out = backend.run(case.queries.to(dtype), key, value, case.layer)
    assert_near(out[:-1], case.expected()[:-1], tolerance)
    assert out[-1].isnan().all()


def check_an_empty_batch(make_backend: MakeBackend, dtype: torch.dtype) -> None:
    case = make_case(
        seed=0, prefill=[], decode=[], page_size=4, num_kv_heads=1, group_size=1, head_dim=8
    )
    assert case.run(make_backend(case), dtype).shape == (0, 1, 8)
