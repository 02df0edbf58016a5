"""Idle and busy time from events, with a stand-in for a GPU's events."""

from dataclasses import dataclass

import pytest
import torch

from tokasaurus.worker.device_clock import DeviceClock


@dataclass
class FakeEvent:
    """Takes its time from a list."""

    times: list[float]
    at: float = 0.0

    def record(self) -> None:
        self.at = self.times.pop(0)

    def synchronize(self) -> None:
        """Always done."""

    def elapsed_time(self, end: "FakeEvent") -> float:
        return end.at - self.at


def test_idle_and_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    times = [1.0, 3.0, 2.0, 5.0, 9.0, 10.0, 11.0]
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: FakeEvent(times))
    clock = DeviceClock()
    timings = []
    for has_kernels in (True, True, True, False):
        if has_kernels:
            clock.start_step()
        timings.append(clock.end_step())
        timings[-1].wait()
    assert [timing.idle_seconds for timing in timings] == [0, 0, 4e-3, 0]
    assert [timing.busy_seconds for timing in timings] == [2e-3, 3e-3, 1e-3, 0]
