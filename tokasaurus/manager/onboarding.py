"""Admits queued sequences, in order, as long as the policy says that their blocks fit."""

from itertools import islice
from typing import Protocol

from tokasaurus.manager.queues import RequestQueue
from tokasaurus.manager.running_set import PrefixMatch, RunningSet
from tokasaurus.manager.sequence import Sequence

_RUNNING_PER_QUESTION = 128
"""A head that was refused is asked about again when one in so many has left."""

_MAX_FIRST_ASKED = 8
"""More may have fitted the last time, when many ended at once."""


class AdmissionPolicy(Protocol):
    """Says whether more sequences fit. Of what they share with running ones, nothing counts twice;
    what candidates would share with each other may."""

    def begin(self) -> None:
        """A round of questions begins."""

    def admits(self, running: RunningSet, matches: list[PrefixMatch]) -> bool:
        """Whether all of these fit; if so, they are seated before the next question."""

    def settle(self, sequences: list[Sequence]) -> None:
        """The sequences that were admitted last have their seats."""

    def observe(self, sequence: Sequence, num_outputs: int, *, is_stop: bool) -> None:
        """A running sequence ended after so many outputs, by itself or because it had to."""


class ReserveAllTokens:
    """Sets blocks aside as if every sequence ended by length: nothing is ever preempted."""

    def begin(self) -> None:
        pass

    def admits(self, running: RunningSet, matches: list[PrefixMatch]) -> bool:
        free = running.blocks.num_available - running.num_reserved_blocks
        return sum(match.num_final_blocks for match in matches) <= free

    def settle(self, sequences: list[Sequence]) -> None:
        pass

    def observe(self, sequence: Sequence, num_outputs: int, *, is_stop: bool) -> None:
        pass


class ReserveKnownTokens(ReserveAllTokens):
    """Admits what fits now and leaves it to preemption when outputs grow."""

    def admits(self, running: RunningSet, matches: list[PrefixMatch]) -> bool:
        return sum(match.num_new_blocks for match in matches) <= running.blocks.num_available


class Onboarder:
    """Moves sequences from the head of the queue into the running set."""

    def __init__(self, queue: RequestQueue, running: RunningSet, policy: AdmissionPolicy) -> None:
        self._queue = queue
        self._running = running
        self._policy = policy
        self._refused: tuple[int, int] | None = None
        """(request, releases) of the last refusal: nothing can have changed without releases."""
        self._num_admitted = 1
        """The last time that any were; about as many are likely to fit the next time."""

    def onboard(self) -> None:
        """Admit until the head of the queue does not fit; nobody overtakes it.

        The number that is asked for at once, which begins where it ended the last time, doubles
        while they fit; from the first refusal after an admission on it halves.
        """
        running = self._running
        if not len(self._queue) or not running.slots.num_free_slots or self._is_refused():
            return
        self._policy.begin()
        num_asked = min(self._num_admitted, _MAX_FIRST_ASKED)
        num_admitted = 0
        was_refused = False
        matches: list[PrefixMatch] = []
        while (num_free := running.slots.num_free_slots) and len(self._queue):
            if not matches:
                candidates = islice(self._queue, min(num_asked, num_free))
                matches = [running.match(sequence) for sequence in candidates]
            if self._policy.admits(running, matches):
                self._onboard_all(matches)
                num_admitted += len(matches)
                num_asked = max(1, len(matches) // 2) if was_refused else 2 * len(matches)
                matches = []
            elif len(matches) > 1:
                was_refused = num_admitted > 0
                matches = matches[: len(matches) // 2]
            else:
                self._refused = (matches[0].sequence.request_id, running.num_releases)
                break
        self._num_admitted = num_admitted or self._num_admitted

    def _is_refused(self) -> bool:
        """Whether the head was refused, and too few have left since to ask again."""
        head = self._queue.head()
        assert head is not None
        if self._refused is None or self._refused[0] != head.request_id:
            return False
        num_left = self._running.num_releases - self._refused[1]
        return num_left < max(1, self._running.num_running // _RUNNING_PER_QUESTION)

    def _onboard_all(self, matches: list[PrefixMatch]) -> None:
        sequences = [match.sequence for match in matches]
        self._queue.remove(*sequences)
        self._running.onboard(matches)
        self._policy.settle(sequences)
