"""Which tokens end the sequences in the worker's slots: decode passes are not repeated past one."""

import numpy as np


class SlotStopTokens:
    """Knows what any slot stops at, so that few draws are looked at closely: between two passes
    nothing is in a CPU's caches, and each look costs."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        # A row that could not draw has token -1 or -2.
        self._num_slots: dict[int, int] = {-1: 1, -2: 1}
        """By token: how many slots stop at it."""
        self._by_slot: dict[int, frozenset[int]] = {}
        self._of_any_slot: np.ndarray | None = np.empty(0, np.int32)
        """None: they have changed."""

    def set(self, slot: int, token_ids: tuple[int, ...]) -> None:
        """A sequence with these stop tokens is at `slot`."""
        self.remove(slot)
        inside = frozenset(i for i in token_ids if 0 <= i < self._vocab_size)
        if inside:
            self._by_slot[slot] = inside
        for token_id in inside:
            self._num_slots[token_id] = self._num_slots.get(token_id, 0) + 1
            if self._num_slots[token_id] == 1:
                self._of_any_slot = None

    def remove(self, slot: int) -> None:
        """Nothing is at `slot` any more."""
        for token_id in self._by_slot.pop(slot, ()):
            self._num_slots[token_id] -= 1
            if not self._num_slots[token_id]:
                del self._num_slots[token_id]
                self._of_any_slot = None

    @property
    def of_any_slot(self) -> np.ndarray:
        """int32, ascending; the same array until they change."""
        if self._of_any_slot is None:
            drawable = sorted(token_id for token_id in self._num_slots if token_id >= 0)
            self._of_any_slot = np.array(drawable, np.int32)
        return self._of_any_slot

    def any_end(self, slots: np.ndarray, token_ids: np.ndarray) -> bool:
        """Whether a slot has drawn one of its stop tokens, or could not draw."""
        drawn = token_ids.tolist()
        if self._num_slots.keys().isdisjoint(drawn):
            return False
        rows = zip(slots.tolist(), drawn, strict=True)
        return any(t < 0 or t in self._by_slot.get(slot, ()) for slot, t in rows)
