"""Closed-form block usage against playing every step through with sets of blocks."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tokasaurus.manager.block_owners import BlockOwners
from tokasaurus.manager.block_usage import (
    Loads,
    extended_usage,
    prefill_finish_times,
    usage_at,
    usage_at_ends,
    usage_by_cells,
    usage_by_sums,
)


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


def _tables(sequences: list[_Sequence]) -> tuple[np.ndarray, np.ndarray]:
    """Block table with a row per sequence, and the tree blocks of each."""
    width = max(1, *(len(sequence.path) for sequence in sequences))
    tables = np.full((len(sequences), width), 99, np.int32)
    for row, sequence in enumerate(sequences):
        tables[row, : len(sequence.path)] = sequence.path
    return tables, np.array([len(sequence.path) for sequence in sequences])


def _owners(sequences: list[_Sequence]) -> tuple[BlockOwners, np.ndarray]:
    """The owners of their blocks, and how many each owns."""
    tables, num_tree_blocks = _tables(sequences)
    held = [block for sequence in sequences for block in sequence.path]
    owners = BlockOwners(np.bincount(np.array(held, np.int64), minlength=100).astype(np.int32))
    ends = np.array([sequence.end for sequence in sequences])
    # What was shared the last time is no more than a hint.
    rows = np.arange(len(sequences))
    owners.assign(tables[::-1].copy(), rows, num_tree_blocks[::-1], ends)
    return owners, owners.assign(tables, rows, num_tree_blocks, ends)


def _loads(sequences: list[_Sequence]) -> Loads:
    return Loads(
        num_tokens=np.array([sequence.num_tokens for sequence in sequences]),
        starts=np.array([sequence.start for sequence in sequences]),
        ends=np.array([sequence.end for sequence in sequences]),
        num_tree_blocks=_tables(sequences)[1],
        num_owned_blocks=_owners(sequences)[1],
    )


@given(_populations())
@settings(max_examples=examples(50, searching=250))
def test_usage_equals_a_replay(population: tuple[int, list[_Sequence]]) -> None:
    page_size, sequences = population
    num_steps = max(sequence.end for sequence in sequences) + 3
    loads = _loads(sequences)
    expected = _replay(sequences, page_size, num_steps)
    times = np.arange(num_steps)
    for usage_of in (usage_at, usage_by_cells, usage_by_sums):
        assert usage_of(loads, times, page_size).tolist() == expected
    assert usage_at_ends(loads, page_size).max() == max(expected)
    assert usage_at_ends(loads, page_size).tolist() == [expected[end] for end in loads.ends]


@given(_populations(), st.integers(0, 12))
@settings(max_examples=examples(50, searching=250))
def test_usage_of_more_sequences_equals_a_new_one(
    population: tuple[int, list[_Sequence]], num_before: int
) -> None:
    page_size, sequences = population
    num_before = min(num_before, len(sequences) - 1)
    joined = _loads(sequences)
    before = joined.rows(slice(num_before))
    if num_before:
        before = _loads(sequences[:num_before])
    usage = extended_usage(usage_at_ends(before, page_size), before, joined, page_size)
    assert usage.tolist() == usage_at_ends(joined, page_size).tolist()


@given(_populations(), st.data())
@settings(max_examples=examples(50, searching=250))
def test_a_block_is_its_last_holders(
    population: tuple[int, list[_Sequence]], data: st.DataObject
) -> None:
    """Along any path; and what is given away stays given away."""
    sequences = population[1]
    owners, num_owned = _owners(sequences)
    last_end: dict[int, int] = {}
    for sequence in sequences:
        for block in sequence.path:
            last_end[block] = max(sequence.end, last_end.get(block, 0))
    counts = [0] * len(sequences)
    given: dict[int, int] = {}
    for path in [*(s.path for s in sequences), [*sequences[0].path, 98]]:
        found = owners.rows(np.array(path, np.int32)).tolist()
        for block, row in zip(path, found, strict=True):
            if block in given:
                assert row == given[block]
            elif block == 98:
                assert row == -1
            else:
                assert block in sequences[row].path
                assert sequences[row].end == last_end[block]
                counts[row] += 1
                given[block] = row
        num_given = data.draw(st.integers(0, len(path)))
        taken = np.array(path[len(path) - num_given :], np.int32)
        owners.give(taken, 1000)
        given.update(dict.fromkeys(taken.tolist(), 1000))
    assert counts == num_owned.tolist()


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
    assert usage_at_ends(loads, 16).size == 0
    assert usage_at(loads, np.arange(3), 16).tolist() == [0, 0, 0]


def test_owners_of_another_forecast_are_forgotten() -> None:
    owners = BlockOwners(np.array([2, 1, 1, 0], np.int32))
    tables = np.array([[0, 1], [0, 2]], np.int32)
    both, none = np.arange(2), np.empty(0, np.int64)
    paths = np.array([[0, 1], [0, 2]])
    assert owners.assign(tables, both, np.array([2, 2]), np.array([5, 3])).tolist() == [2, 1]
    assert [owners.rows(path).tolist() for path in paths] == [[0, 0], [0, 1]]
    owners.give(np.array([3, 1]), np.array([7, 1]))
    assert owners.rows(np.array([0, 1, 3])).tolist() == [0, 1, 7]
    assert owners.assign(tables, none, none, none).size == 0
    assert owners.rows(np.array([0, 2])).tolist() == [-1, -1]
