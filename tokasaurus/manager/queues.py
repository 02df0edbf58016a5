"""Requests that wait: first in, first out within a priority; preempted ones before new ones.

Who waits gains on other priorities with time, so that nobody waits forever.
"""

import heapq
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator

from tokasaurus.manager.sequence import Sequence


class _Lane:
    """Waiting sequences of one priority."""

    def __init__(self) -> None:
        self.preempted: list[Sequence] = []
        """By arrival, newest first, so that the head is popped from the end."""
        self.fresh: OrderedDict[int, Sequence] = OrderedDict()

    def __len__(self) -> int:
        return len(self.preempted) + len(self.fresh)

    def __iter__(self) -> Iterator[Sequence]:
        yield from reversed(self.preempted)
        yield from self.fresh.values()

    def remove(self, sequence: Sequence) -> None:
        if self.fresh.pop(sequence.request_id, None) is not None:
            return
        index = bisect_left(self.preempted, -sequence.arrival, key=_newest_first)
        assert self.preempted[index] is sequence, f"{sequence.request_id} does not wait"
        del self.preempted[index]


def _newest_first(sequence: Sequence) -> int:
    return -sequence.arrival


class RequestQueue:
    """Lanes by priority, lowest number first."""

    def __init__(self, aging_seconds: float = 60.0) -> None:
        """Waiting for `aging_seconds` is worth one step of priority."""
        self._aging_seconds = aging_seconds
        self._lanes: dict[int, _Lane] = {}
        self._priorities: list[int] = []
        self._num_sequences = 0

    def __len__(self) -> int:
        return self._num_sequences

    def __iter__(self) -> Iterator[Sequence]:
        """In the order in which they leave."""
        lanes = [self._lanes[priority] for priority in self._priorities]
        if len(lanes) == 1:
            return iter(lanes[0])
        return heapq.merge(*lanes, key=self._rank)

    def push(self, sequence: Sequence) -> None:
        """Append a new request."""
        self._lane(sequence).fresh[sequence.request_id] = sequence
        self._num_sequences += 1

    def push_preempted(self, sequence: Sequence) -> None:
        """Put it before all new requests of its priority, in order of arrival."""
        insort(self._lane(sequence).preempted, sequence, key=_newest_first)
        self._num_sequences += 1

    def head(self) -> Sequence | None:
        return next(iter(self), None)

    def remove(self, *sequences: Sequence) -> None:
        for sequence in sequences:
            self._lanes[sequence.request.priority].remove(sequence)
        self._num_sequences -= len(sequences)
        for priority in [p for p in self._priorities if not len(self._lanes[p])]:
            del self._lanes[priority]
            self._priorities.remove(priority)

    def _rank(self, sequence: Sequence) -> float:
        """Lower leaves earlier. Time passes for all alike, so the order of two never changes."""
        return sequence.request.priority + sequence.queued_at / self._aging_seconds

    def _lane(self, sequence: Sequence) -> _Lane:
        priority = sequence.request.priority
        if priority not in self._lanes:
            self._lanes[priority] = _Lane()
            insort(self._priorities, priority)
        return self._lanes[priority]

    def check_invariants(self) -> None:
        assert self._priorities == sorted(self._lanes)
        assert self._num_sequences == sum(map(len, self._lanes.values()))
        for lane in self._lanes.values():
            assert len(lane), "an empty lane is kept"
            arrivals = [sequence.arrival for sequence in lane.preempted]
            assert arrivals == sorted(arrivals, reverse=True)
            arrivals = [sequence.arrival for sequence in lane.fresh.values()]
            assert arrivals == sorted(arrivals)
