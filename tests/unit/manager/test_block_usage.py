"""Closed-form block usage against playing every step through with sets of blocks."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tokasaurus.manager.block_owners import BlockOwners
from tokasaurus.manager.block_usage import Loads, peak_usage, prefill_finish_times, usage_at


class _Sequence:
    """One sequence of the replay: real block ids, shared ones by path in a tree."""

    def __init__(self, path: list[int], num_tokens: int, start: int, end: int) -> None:
        self.path, self.num_tokens, self.start, self.end = path, num_tokens, start, end


@st.composite
def _populations(draw: st.DrawFn) -> tuple[int, list[_Sequence]]:
    page_size = draw(st.integers(1, 64))
    sequences = []
    paths: dict[tuple[int, ...], int] = {(): 0}
    for _ in range(draw(st.integers(1, 12))):
        branch = tuple(draw(st.lists(st.integers(0, 1), max_size=4)))
        path = [paths.setdefault(branch[: depth + 1], len(paths)) for depth in range(len(branch))]
        extra = draw(st.integers(0, 3 * page_size))
        start = draw(st.integers(0, 40))
        end = start + draw(st.integers(0, 150))
        num_tokens = max(1, len(path) * page_size + extra)
        sequences.append(_Sequence(path, num_tokens, start, end))
    return page_size, sequences


def _replay(sequences: list[_Sequence], page_size: int, num_steps: int) -> list[int]:
    usage = []
    for time in range(num_steps):
        shared: set[int] = set()
        private = 0
        for sequence in sequences:
            if time > sequence.end:
                continue
            num_tokens = sequence.num_tokens + max(0, time - sequence.start)
            shared.update(sequence.path)
            private += -(-num_tokens // page_size) - len(sequence.path)
        usage.append(len(shared) + private)
    return usage


def _loads(sequences: list[_Sequence]) -> Loads:
    width = max(len(sequence.path) for sequence in sequences)
    tables = np.zeros((len(sequences), width), np.int32)
    for row, sequence in enumerate(sequences):
        tables[row, : len(sequence.path)] = sequence.path
    num_tree_blocks = np.array([len(sequence.path) for sequence in sequences])
    ends = np.array([sequence.end for sequence in sequences])
    return Loads(
        num_tokens=np.array([sequence.num_tokens for sequence in sequences]),
        starts=np.array([sequence.start for sequence in sequences]),
        ends=ends,
        num_tree_blocks=num_tree_blocks,
        num_owned_blocks=BlockOwners(100).assign(tables, num_tree_blocks, ends),
    )


@given(_populations())
@settings(max_examples=300, deadline=None)
def test_usage_equals_a_replay(population: tuple[int, list[_Sequence]]) -> None:
    page_size, sequences = population
    num_steps = max(sequence.end for sequence in sequences) + 3
    loads = _loads(sequences)
    expected = _replay(sequences, page_size, num_steps)
    assert usage_at(loads, np.arange(num_steps), page_size).tolist() == expected
    assert peak_usage(loads, page_size) == max(expected)


@given(st.lists(st.integers(0, 200), min_size=1, max_size=20), st.integers(1, 64))
def test_prefill_finish_times(num_tokens: list[int], rate: int) -> None:
    times = prefill_finish_times(np.array(num_tokens), rate).tolist()
    left, step, expected = list(num_tokens), 0, []
    for index in range(len(left)):
        while sum(left[: index + 1]) > 0:
            budget = rate
            step += 1
            for other in range(len(left)):
                taken = min(budget, left[other])
                left[other] -= taken
                budget -= taken
        expected.append(step)
    assert times == expected


def test_nothing_uses_nothing() -> None:
    none = np.empty(0, np.int64)
    loads = Loads(
        num_tokens=none, starts=none, ends=none, num_tree_blocks=none, num_owned_blocks=none
    )
    assert peak_usage(loads, 16) == 0
    assert usage_at(loads, np.arange(3), 16).tolist() == [0, 0, 0]


def test_owners_of_another_forecast_are_forgotten() -> None:
    owners = BlockOwners(4)
    tables = np.array([[0, 1], [0, 2]], np.int32)
    assert owners.assign(tables, np.array([2, 2]), np.array([5, 3])).tolist() == [2, 1]
    blocks = np.arange(4)
    assert owners.rows(blocks).tolist() == [0, 0, 1, -1]
    owners.give(np.array([3, 1]), np.array([7, -1]))
    assert owners.rows(blocks).tolist() == [0, -1, 1, 7]
    assert owners.assign(tables[:0], np.empty(0, np.int64), np.empty(0, np.int64)).size == 0
    assert owners.rows(blocks).tolist() == [-1] * 4
    assert owners.assign(tables[1:, :1], np.array([1]), np.array([0])).tolist() == [1]
    assert owners.rows(blocks).tolist() == [0, -1, -1, -1]
