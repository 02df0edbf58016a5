"""Looking up a prompt again finds what is cached now, not what was then."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.unit.manager.harness import make_request
from tokasaurus.manager.running_set import RunningSet
from tokasaurus.manager.sequence import Sequence

_PROMPT = list(range(9))


def _sequence(index: int, prompt: list[int], salt: str = "") -> Sequence:
    return Sequence.from_request(make_request(index, prompt, 4, salt=salt), arrival=index)


def _running_set() -> RunningSet:
    return RunningSet(num_slots=8, max_num_tokens=40, num_blocks=10, page_size=4)


def _onboard(running: RunningSet, sequence: Sequence) -> None:
    running.onboard([running.match(sequence)])
    running.mark_scheduled(sequence, sequence.token_ids.size)
    running.check_invariants()


def test_twins_share_one_path() -> None:
    running = _running_set()
    first, second, third = (_sequence(index, _PROMPT) for index in range(3))
    _onboard(running, first)
    match = running.match(second)
    assert match.path.tolist() == running.slots.blocks(first.slot)[:2].tolist()
    assert running.match(third).path is match.path
    assert running.match(_sequence(3, _PROMPT, salt="other")).path.size == 0
    assert running.match(_sequence(4, [*_PROMPT, 1])).path.tolist() == match.path.tolist()


def test_what_was_evicted_is_not_found_again() -> None:
    running = _running_set()
    first = _sequence(0, _PROMPT)
    _onboard(running, first)
    match = running.match(_sequence(1, _PROMPT))
    assert len(match.path) == 2
    running.slots.num_known[first.slot] = 9
    running.release(first)
    # A stranger takes all blocks, and leaves others' content at the same places.
    stranger = _sequence(2, np.arange(100, 140).tolist())
    _onboard(running, stranger)
    running.release(stranger)
    assert running.match(_sequence(3, _PROMPT)).path.size == 0
    assert running.match(match.sequence).path.size == 0


def test_a_path_that_got_longer_is_found_whole() -> None:
    running = _running_set()
    match = running.match(_sequence(0, _PROMPT))
    assert match.path.size == 0
    _onboard(running, _sequence(1, _PROMPT))
    assert len(running.match(match.sequence).path) == 2


def test_twins_and_strangers_onboard_together_as_one_after_the_other() -> None:
    """Also where paths grow in between, blocks must be evicted, and prompts are not cacheable."""
    prompts = [_PROMPT, _PROMPT, [*_PROMPT, 1], [7], [7], [1, 2, 3, 4], [1, 2, 3, 4], _PROMPT[:4]]
    tables = []
    for batch in (1, len(prompts)):
        running = RunningSet(num_slots=9, max_num_tokens=80, num_blocks=16, page_size=4)
        former = _sequence(90, np.arange(100, 157).tolist())
        _onboard(running, former)
        running.slots.num_known[former.slot] = former.token_ids.size
        running.release(former)
        assert running.blocks.num_free < 5
        sequences = [_sequence(index, prompt) for index, prompt in enumerate(prompts)]
        for first in range(0, len(prompts), batch):
            matches = [running.match(sequence) for sequence in sequences[first : first + batch]]
            running.onboard(matches)
            running.check_invariants()
        slots = [sequence.slot for sequence in sequences]
        tables.append(
            [
                (sequence.num_matched_blocks, int(running.slots.num_tree_blocks[sequence.slot]))
                for sequence in sequences
            ]
        )
        heads = [int(running.slots.blocks(slot)[0]) for slot in slots]
        assert heads[0] == heads[1] == heads[2]
        tables[-1] += [(running.blocks.num_in_use, running.blocks.num_available)]
    assert tables[0] == tables[1]


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=12), st.sampled_from(["", "x"])),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 5),
    st.data(),
)
@settings(max_examples=examples(50, searching=250))
def test_any_batches_onboard_as_one_after_the_other(
    prompts: list[tuple[list[int], str]], page_size: int, data: st.DataObject
) -> None:
    outcomes = []
    for max_batch in (1, len(prompts)):
        running = RunningSet(num_slots=12, max_num_tokens=40, num_blocks=160, page_size=page_size)
        waiting = [_sequence(i, prompt, salt) for i, (prompt, salt) in enumerate(prompts)]
        outcome = []
        while waiting:
            size = data.draw(st.integers(1, min(max_batch, len(waiting))))
            batch, waiting = waiting[:size], waiting[size:]
            running.onboard([running.match(sequence) for sequence in batch])
            running.check_invariants()
            for sequence in batch:
                tree_blocks = int(running.slots.num_tree_blocks[sequence.slot])
                outcome.append((sequence.num_matched_blocks, tree_blocks))
        outcomes.append((outcome, running.blocks.num_in_use, running.num_reserved_blocks))
    assert outcomes[0] == outcomes[1]
