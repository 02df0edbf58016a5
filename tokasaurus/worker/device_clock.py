"""How long a GPU computed and how long it had run out of work, from events in its own stream."""

from dataclasses import dataclass
from typing import Protocol

import torch


class TimedEvent(Protocol):
    """What of `torch.cuda.Event` is used here."""

    def record(self) -> None: ...
    def synchronize(self) -> None: ...
    def elapsed_time(self, end: "TimedEvent") -> float: ...


@dataclass(frozen=True, slots=True)
class StepTiming:
    """Events around one step's kernels; the properties are valid after `wait`."""

    before: TimedEvent | None
    """The end of the step before it."""
    started: TimedEvent | None
    ended: TimedEvent

    def wait(self) -> None:
        self.ended.synchronize()

    @property
    def idle_seconds(self) -> float:
        """Between the step before and this one: 0 where this one was launched in time."""
        if self.before is None or self.started is None:
            return 0.0
        return max(0.0, self.before.elapsed_time(self.started)) / 1e3

    @property
    def busy_seconds(self) -> float:
        """From the step's first kernel to its last."""
        return 0.0 if self.started is None else self.started.elapsed_time(self.ended) / 1e3


class DeviceClock:
    """Records an event where a step's first kernel is launched and one after its last."""

    def __init__(self) -> None:
        self._before: TimedEvent | None = None
        self._started: TimedEvent | None = None

    def start_step(self) -> None:
        """Call right before the first kernel: what the host does earlier is idle time. Further
        calls for the same step change nothing."""
        if self._started is None:
            self._started = self._record()

    def end_step(self) -> StepTiming:
        timing = StepTiming(self._before, self._started, self._record())
        self._before, self._started = timing.ended, None
        return timing

    def _record(self) -> TimedEvent:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event  # type: ignore[return-value]  # its methods take further arguments
