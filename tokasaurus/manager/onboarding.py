"""Admits queued sequences, in order, as long as the policy says that their blocks fit."""

from typing import Protocol

from tokasaurus.manager.queues import RequestQueue
from tokasaurus.manager.running_set import PrefixMatch, RunningSet
from tokasaurus.manager.sequence import Sequence


class AdmissionPolicy(Protocol):
    """Says whether one more sequence fits; blocks that it shares count once."""

    def admits(self, running: RunningSet, match: PrefixMatch) -> bool: ...


class ReserveAllTokens:
    """Sets blocks aside as if every sequence ended by length: nothing is ever preempted."""

    def admits(self, running: RunningSet, match: PrefixMatch) -> bool:
        free = running.blocks.num_available - running.num_reserved_blocks
        return match.num_final_blocks <= free


class ReserveKnownTokens:
    """Admits what fits now and leaves it to preemption when outputs grow."""

    def admits(self, running: RunningSet, match: PrefixMatch) -> bool:
        return match.num_new_blocks <= running.blocks.num_available


class Onboarder:
    """Moves sequences from the head of the queue into the running set."""

    def __init__(self, queue: RequestQueue, running: RunningSet, policy: AdmissionPolicy) -> None:
        self._queue = queue
        self._running = running
        self._policy = policy
        self._refused: tuple[int, int] | None = None
        """(request, releases) of the last refusal: nothing can have changed until a release."""

    def onboard(self) -> None:
        """Admit until the head of the queue does not fit; nobody overtakes it."""
        while self._running.slots.num_free_slots:
            sequence = self._queue.head()
            if sequence is None:
                return
            if self._refused == (sequence.request_id, self._running.num_releases):
                return
            if not self._onboard_head(sequence):
                self._refused = (sequence.request_id, self._running.num_releases)
                return

    def _onboard_head(self, sequence: Sequence) -> bool:
        match = self._running.match(sequence)
        if not self._policy.admits(self._running, match):
            return False
        self._queue.remove(sequence)
        self._running.onboard(sequence, match)
        return True
