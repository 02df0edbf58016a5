"""Knows which tokens end some live sequence, so that only few rows are looked at closely."""

import numpy as np


class StopTokens:
    """Counts, per token, the live sequences that stop at it."""

    def __init__(self, vocab_size: int) -> None:
        self._counts = np.zeros(vocab_size + 2, np.int32)
        # A row that could not draw has token -1 or -2, which reads the last two: look closely.
        self._counts[-2:] = 1
        self._vocab_size = vocab_size

    def add(self, stop_token_ids: tuple[int, ...]) -> None:
        """A sequence with these stop tokens has come."""
        self._change(stop_token_ids, 1)

    def remove(self, stop_token_ids: tuple[int, ...]) -> None:
        """It has ended."""
        self._change(stop_token_ids, -1)

    def may_stop(self, token_ids: np.ndarray) -> np.ndarray:
        """bool[S]: False where the token ends no live sequence and is a token."""
        return self._counts[token_ids] > 0

    def _change(self, stop_token_ids: tuple[int, ...], by: int) -> None:
        for token_id in set(stop_token_ids):
            if 0 <= token_id < self._vocab_size:
                self._counts[token_id] += by

    def check_invariants(self, live: list[tuple[int, ...]]) -> None:
        """`live` are the stop tokens of every live sequence."""
        counts = np.zeros_like(self._counts)
        for stop_token_ids in live:
            for token_id in set(stop_token_ids):
                if 0 <= token_id < self._vocab_size:
                    counts[token_id] += 1
        counts[-2:] = 1
        assert (counts == self._counts).all()
