"""Which tokens end the sequences in the worker's slots: decode passes are not repeated past one."""

import numpy as np


class SlotStopTokens:
    """Counts, per token, the slots that stop at it, so that few rows are looked at closely."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._counts = np.zeros(vocab_size + 2, np.int32)
        # A row that could not draw has token -1 or -2, which reads the last two.
        self._counts[-2:] = 1
        self._by_slot: dict[int, frozenset[int]] = {}

    def set(self, slot: int, token_ids: tuple[int, ...]) -> None:
        """A sequence with these stop tokens is at `slot`."""
        self.remove(slot)
        inside = frozenset(i for i in token_ids if 0 <= i < self._vocab_size)
        if inside:
            self._by_slot[slot] = inside
            self._counts[list(inside)] += 1

    def remove(self, slot: int) -> None:
        """Nothing is at `slot` any more."""
        if (before := self._by_slot.pop(slot, None)) is not None:
            self._counts[list(before)] -= 1

    def any_end(self, slots: np.ndarray, token_ids: np.ndarray) -> bool:
        """Whether a slot has drawn one of its stop tokens, or could not draw."""
        may_end = self._counts[token_ids]
        if not may_end.any():
            return False
        rows = may_end.nonzero()[0]
        drawn = zip(slots[rows].tolist(), token_ids[rows].tolist(), strict=True)
        return any(t < 0 or t in self._by_slot.get(slot, ()) for slot, t in drawn)
