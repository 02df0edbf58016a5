"""No run of a workload finds prefixes that another run, or another workload, left in a cache."""

from workloads import WORKLOADS


def test_beginnings_differ() -> None:
    beginnings = [
        tuple(workload.prompts(run)[0][:16]) for workload in WORKLOADS.values() for run in range(3)
    ]
    assert len(set(beginnings)) == len(beginnings)
    assert WORKLOADS["W1"].prompts(1) == WORKLOADS["W1"].prompts(1)
