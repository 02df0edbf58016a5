"""Takes blocks back from running sequences: the newest first, and their tokens are kept.

A victim first receives its tokens in flight (and may end by them), then waits at the head of its
queue; its computed blocks stay cached until others need them.
"""

from collections.abc import Callable

from tokasaurus.manager.queues import RequestQueue
from tokasaurus.manager.running_set import RunningSet
from tokasaurus.manager.sequence import Sequence, SequenceState


class Preempter:
    """Chooses victims and queues them again."""

    def __init__(
        self, queue: RequestQueue, running: RunningSet, clock: Callable[[], float]
    ) -> None:
        self._queue = queue
        self._running = running
        self._clock = clock
        self._waiting: list[Sequence] = []
        """Victims with tokens in flight."""
        self.num_preemptions = 0

    def make_room(self) -> bool:
        """Preempt the newest sequence; False if blocks will come back without that.

        The oldest sequence of the lowest priority number is never a victim while others run, so
        some sequence always advances.
        """
        if self._running.num_waiting_for_tokens:
            return False
        victim = self._newest(decoding_only=False)
        assert victim is not None, "a block is needed but nothing runs"
        self.preempt(victim)
        return True

    def preempt_newest_decoding(self) -> None:
        """Preempt for the sake of it, to test that nothing is lost."""
        victim = self._newest(decoding_only=True)
        if victim is not None:
            self.preempt(victim)

    def preempt(self, sequence: Sequence) -> None:
        """Take the seat away, now or when the tokens in flight have arrived."""
        self._running.stop_decoding(sequence)
        sequence.is_preempting = True
        if self._running.slots.num_tokens_in_flight(sequence.slot):
            self._waiting.append(sequence)
        else:
            self._requeue(sequence)

    def settle(self) -> None:
        """Queue the victims whose tokens have all arrived."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        for sequence in waiting:
            if sequence.state is SequenceState.FINISHED:
                continue
            if self._running.slots.num_tokens_in_flight(sequence.slot):
                self._waiting.append(sequence)
            else:
                self._requeue(sequence)

    def _requeue(self, sequence: Sequence) -> None:
        sequence.token_ids = self._running.slots.known_tokens(sequence.slot)
        self._running.release(sequence)
        sequence.is_preempting = False
        sequence.state = SequenceState.QUEUED
        sequence.num_preemptions += 1
        if sequence.has_run_since_it_waited:
            sequence.preempted_at.append(self._clock() - sequence.queued_at)
        self.num_preemptions += 1
        self._queue.push_preempted(sequence)

    def _newest(self, *, decoding_only: bool) -> Sequence | None:
        if decoding_only:
            self._running.refresh_decode_slots()
            slots = self._running.decode_slots.tolist()
            candidates = [self._running.slots.sequences[slot] for slot in slots]
        else:
            candidates = self._running.slots.sequences
        running = [s for s in candidates if s is not None and not s.is_preempting]
        return max(running, key=lambda s: (s.request.priority, s.arrival), default=None)
