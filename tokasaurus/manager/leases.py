"""How many passes the worker may decode before it answers: a lease, so that nobody wakes up for
each token that nobody waits for.

A lease counts in full when it is planned, as every step in flight does; its answer gives back the
passes that were not run.
"""

import numpy as np

from tokasaurus.ipc.messages.to_manager import RunnerCapabilities
from tokasaurus.manager.running_set import RunningSet
from tokasaurus.manager.settings import ManagerSettings

_MAX_SECONDS = 0.5
"""How long a lease may take: what is not worth ending it waits for so long. Each lease wakes some
ten threads of other processes, for which computing ones wait five milliseconds in all."""
_SHARE_OF_TIMEOUT = 0.25
"""Most of `step_timeout_seconds` that a lease takes: a step that hangs is known by its silence."""


class LeasePlanner:
    """Knows how long a pass takes, and for whom each token has to come at once."""

    def __init__(
        self, settings: ManagerSettings, capabilities: RunnerCapabilities, running: RunningSet
    ) -> None:
        is_fed = settings.scheduling_steps_ahead > 0
        may_repeat = capabilities.repeats and is_fed
        self._max_passes = settings.max_decode_repeats if may_repeat else 1
        self._max_seconds = min(_MAX_SECONDS, _SHARE_OF_TIMEOUT * settings.step_timeout_seconds)
        self._running = running
        self._seconds = 0.0
        """Of one pass, the last time that one was measured."""
        self._num_measured = 0
        """Rows that it had."""
        self._seen_slots: np.ndarray | None = None
        self._num_single_tokens: np.ndarray | None = None
        """Of these, `Sequence.num_single_tokens`; None if nobody waits for single ones."""

    def observe(self, num_rows: int, num_passes: int, seconds: float) -> None:
        """A step that only decodes took so long."""
        self._num_measured, self._seconds = num_rows, seconds / num_passes

    def num_passes(self) -> int:
        """Most passes of a step of all decoding sequences without prefills; at least 1."""
        running = self._running
        decode_slots = running.decode_slots
        if self._max_passes == 1 or running.prefilling or decode_slots.size > self._num_measured:
            return 1
        most = self._max_passes
        if self._seconds * most > self._max_seconds:
            most = int(self._max_seconds / self._seconds)
        if most <= 1 or not self._allows(decode_slots):
            return 1
        slots = running.slots
        num_left = slots.max_num_tokens[decode_slots] - slots.num_drawn[decode_slots]
        most = min(most, int(num_left.min()))
        while most > 1 and self._num_new_blocks(decode_slots, most) > running.blocks.num_available:
            most //= 2
        return most

    def _allows(self, decode_slots: np.ndarray) -> bool:
        if decode_slots is not self._seen_slots:
            self._seen_slots = decode_slots
            num_single = self._running.slots.num_single_tokens[decode_slots]
            self._num_single_tokens = num_single if num_single.any() else None
        if self._num_single_tokens is None:
            return True
        num_drawn = self._running.slots.num_drawn[decode_slots]
        return not (num_drawn < self._num_single_tokens).any()

    def _num_new_blocks(self, decode_slots: np.ndarray, num_passes: int) -> int:
        slots, page_size = self._running.slots, self._running.page_size
        num_missing = slots.num_scheduled[decode_slots] + num_passes - slots.capacity[decode_slots]
        return int(-(-num_missing.clip(0) // page_size).sum())
