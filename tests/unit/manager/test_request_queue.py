"""The queue against a sorted list."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.manager.harness import make_request
from tokasaurus.manager.queues import RequestQueue
from tokasaurus.manager.sequence import Sequence


def test_waiting_makes_up_for_priority() -> None:
    queue = RequestQueue(aging_seconds=10.0)
    arrivals = [(5, 0.0), (0, 20.0), (0, 49.0), (0, 51.0), (5, 1.5)]
    for arrival, (priority, queued_at) in enumerate(arrivals):
        request = make_request(arrival, [1], priority=priority)
        queue.push(Sequence.from_request(request, arrival, queued_at))
    assert [sequence.arrival for sequence in queue] == [1, 2, 0, 3, 4]
    assert queue.head() is next(iter(queue))


@given(st.lists(st.tuples(st.sampled_from("npr"), st.integers(0, 2), st.integers(0, 10**6))))
def test_order_is_that_of_a_sorted_list(operations: list[tuple[str, int, int]]) -> None:
    queue = RequestQueue()
    waiting: list[tuple[int, bool, int, Sequence]] = []
    for arrival, (kind, priority, choice) in enumerate(operations):
        if kind == "r" and waiting:
            entry = waiting.pop(choice % len(waiting))
            queue.remove(entry[3])
        else:
            request = make_request(arrival, [1], priority=priority)
            # A preempted sequence may be older than others that were preempted before it.
            age = -(choice * 1000) - arrival if kind == "p" else arrival
            sequence = Sequence(
                request=request,
                arrival=age,
                token_ids=np.array([1], np.int32),
                kind=0,
                prompt_key=0,
            )
            is_new = kind != "p"
            (queue.push if is_new else queue.push_preempted)(sequence)
            waiting.append((priority, is_new, age, sequence))
        waiting.sort(key=lambda entry: entry[:3])
        queue.check_invariants()
        assert list(queue) == [entry[3] for entry in waiting]
        assert queue.head() is (waiting[0][3] if waiting else None)
        assert len(queue) == len(waiting)
