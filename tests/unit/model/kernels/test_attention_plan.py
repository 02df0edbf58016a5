"""The plan of a step's attention: every query sees every key it may see exactly once."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokasaurus.model.kernels.loader import load_kernels


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step to plan. `prefill` and `decode` are rows: (query tokens, keys) and keys; `groups` are
    decode rows that share their first blocks: (first decode row, rows, blocks)."""

    prefill: tuple[tuple[int, int], ...] = ()
    decode: tuple[int, ...] = ()
    groups: tuple[tuple[int, int, int], ...] = ()
    num_kv_heads: int = 3
    group_size: int = 3
    head_dim: int = 64
    page_size: int = 16
    window: int = 0
    dtype: torch.dtype = torch.bfloat16
    num_threads: int = 2

    def rows(self) -> list[tuple[int, int]]:
        return [*self.prefill, *((1, keys) for keys in self.decode)]


def check_plan(step: Step) -> list[list[int]]:
    """Returns the items."""
    rows = step.rows()
    num_blocks = [-(-keys // step.page_size) for _, keys in rows]
    indptr = np.cumsum([0, *num_blocks]).astype(np.int32)
    with torch_threads(step.num_threads):
        items, merges, parts, num_partial_rows = load_kernels().ops.attention_plan(
            torch.tensor([queries for queries, _ in rows], dtype=torch.int32),
            torch.tensor([keys for _, keys in rows], dtype=torch.int32),
            torch.from_numpy(indptr),
            len(step.prefill),
            torch.tensor(step.groups, dtype=torch.int32).view(-1, 3),
            step.num_kv_heads,
            step.group_size,
            step.head_dim,
            step.page_size,
            step.dtype,
            step.window,
        )

    row_of = np.repeat(np.arange(len(rows)), [queries for queries, _ in rows])
    position_of = np.concatenate([np.arange(keys - queries, keys) for queries, keys in rows])
    group_of = {first + i: first for first, count, _ in step.groups for i in range(count)}
    first_decode = len(step.prefill)
    seen = [np.zeros((step.num_kv_heads, keys), np.int64) for keys in position_of + 1]
    partials: dict[tuple[int, int], list[int]] = {}
    num_items = np.zeros((len(row_of), step.num_kv_heads), np.int64)
    used = np.zeros(num_partial_rows, np.int64)

    for item in items.tolist():
        token0, num_tokens, head0, num_heads, begin, end, position0, block_offset, partial = item
        assert 0 <= begin < end
        assert begin % step.page_size == 0
        assert num_heads > 0
        assert head0 + num_heads <= step.num_kv_heads
        item_rows = num_tokens * step.group_size
        if partial >= 0:
            used[partial : partial + num_heads * item_rows] += 1
        for i in range(num_tokens):
            token = token0 + i
            row = int(row_of[token])
            if position0 < 0:
                shared_by = first_decode + group_of[row - first_decode]
                assert block_offset == indptr[shared_by]
                assert end <= position_of[token] + 1
            else:
                assert position0 + i == position_of[token]
                assert block_offset == indptr[row]
            seen[token][head0 : head0 + num_heads, begin:end] += 1
            for h in range(num_heads):
                num_items[token, head0 + h] += 1
                if partial >= 0:
                    at = partial + h * item_rows + i * step.group_size
                    partials.setdefault((token, head0 + h), []).append(at)

    for token, counts in enumerate(seen):
        visible = max(0, position_of[token] + 1 - step.window) if step.window else 0
        assert (counts[:, visible:] == 1).all()
        assert (counts <= 1).all()
    assert (used == 1).all()
    merged = {
        (token, head): parts.flatten()[first : first + count].tolist()
        for token, head, first, count in merges.tolist()
    }
    assert len(merged) == len(merges)
    assert {key: sorted(value) for key, value in merged.items()} == {
        key: sorted(value) for key, value in partials.items()
    }
    for (token, head), count in np.ndenumerate(num_items):
        assert count == len(merged.get((token, head), [None]))
    return items.tolist()


@pytest.mark.parametrize("num_threads", [1, 2, 3, 7, 16, 64])
def test_a_long_row_whose_last_keys_are_fewer_than_threads(num_threads: int) -> None:
    """Items shrink toward the end of a row: they never become empty."""
    for num_blocks in (1, 2, 4, 31, 128):
        for past in (0, 1, 2 * num_threads - 1, 2 * num_threads + 1):
            check_plan(Step(decode=(64 * num_blocks + past,), num_threads=num_threads))


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_threads_share_a_short_row_equally(num_threads: int) -> None:
    items = check_plan(Step(decode=(192,), num_threads=num_threads))
    share = 192 // num_threads
    assert [(item[3], item[4], item[5]) for item in items] == [
        (3, i * share, (i + 1) * share) for i in range(num_threads)
    ]


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("num_threads", [2, 3, 4, 8, 12])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 3, 5, 6, 8])
def test_threads_share_a_short_row_whatever_its_heads(
    num_kv_heads: int, num_threads: int, head_dim: int
) -> None:
    """Parts are equal and as many for each thread, or so small that free threads even them out."""
    keys = 64 * num_threads
    step = Step(
        decode=(keys,), num_kv_heads=num_kv_heads, head_dim=head_dim, num_threads=num_threads
    )
    costs = [item[3] * (item[5] - item[4]) for item in check_plan(step)]
    are_equal = len(costs) % num_threads == 0 and len(set(costs)) == 1
    assert are_equal or max(costs) <= num_kv_heads * keys / num_threads / 2


@st.composite
def steps(draw: st.DrawFn) -> Step:
    page_size = draw(st.sampled_from([1, 3, 16, 64, 100, 128]))
    prefill = draw(
        st.lists(
            st.tuples(st.integers(1, 100), st.integers(0, 300)).map(lambda x: (x[0], sum(x))),
            max_size=2,
        )
    )
    decode: list[int] = []
    groups = []
    for _ in range(draw(st.integers(0, 3))):
        shared = draw(st.integers(0, 600 // page_size))
        keys = draw(st.lists(st.integers(1, 700), min_size=1, max_size=30))
        if shared and draw(st.booleans()):
            groups.append((len(decode), len(keys), shared))
            keys = [shared * page_size + count for count in keys]
        decode.extend(keys)
    if not prefill and not decode:
        decode.append(1)
    return Step(
        prefill=tuple(prefill),
        decode=tuple(decode),
        groups=tuple(groups),
        num_kv_heads=draw(st.integers(1, 9)),
        group_size=draw(st.integers(1, 16)),
        head_dim=draw(st.sampled_from([8, 40, 64, 128, 256])),
        page_size=page_size,
        window=draw(st.sampled_from([0, 0, 1, 7, 128, 1000])),
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16])),
        num_threads=draw(st.sampled_from([1, 2, 3, 8, 64])),
    )


@settings(max_examples=100)
@given(step=steps())
def test_every_query_sees_its_keys_once(step: Step) -> None:
    check_plan(step)
