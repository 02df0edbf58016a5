"""Which draws end a sequence."""

import numpy as np

from tokasaurus.worker.stop_tokens import SlotStopTokens


def any_end(stop_tokens: SlotStopTokens, **drawn: int) -> bool:
    """Of slots named s0, s1, ... the tokens they drew."""
    slots = np.array([int(name[1:]) for name in drawn])
    return stop_tokens.any_end(slots, np.array(list(drawn.values()), np.int32))


def test_a_slot_ends_by_its_own_stop_tokens() -> None:
    stop_tokens = SlotStopTokens(10)
    stop_tokens.set(0, (3, 9, 3))
    stop_tokens.set(2, (4, -1, 10, 11))
    assert any_end(stop_tokens, s0=3)
    assert any_end(stop_tokens, s1=3, s0=9)
    assert any_end(stop_tokens, s2=4)
    assert not any_end(stop_tokens, s0=4, s1=9, s2=3)


def test_who_could_not_draw_ends() -> None:
    stop_tokens = SlotStopTokens(10)
    assert any_end(stop_tokens, s0=-1)
    assert any_end(stop_tokens, s0=1, s1=-2)


def test_a_slot_that_is_taken_over_forgets() -> None:
    stop_tokens = SlotStopTokens(10)
    stop_tokens.set(0, (3,))
    stop_tokens.set(1, (3,))
    stop_tokens.set(0, (5,))
    stop_tokens.remove(1)
    stop_tokens.remove(1)
    assert not any_end(stop_tokens, s0=3, s1=3)
    assert any_end(stop_tokens, s0=5)


def test_tokens_of_any_slot() -> None:
    stop_tokens = SlotStopTokens(10)
    assert stop_tokens.of_any_slot.tolist() == []
    stop_tokens.set(0, (7, 3))
    stop_tokens.set(1, (3, 5, 12, -1))
    first = stop_tokens.of_any_slot
    assert first.dtype == np.int32
    assert first.tolist() == [3, 5, 7]
    stop_tokens.set(2, (5,))
    stop_tokens.remove(2)
    assert stop_tokens.of_any_slot is first
    stop_tokens.remove(1)
    assert stop_tokens.of_any_slot.tolist() == [3, 7]
