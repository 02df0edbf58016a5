"""Counts what the manager did and says when it is time to tell the servers."""

from dataclasses import dataclass

from tokasaurus.ipc.messages.to_server import ManagerStats


@dataclass(slots=True, kw_only=True)
class Counters:
    """Totals since start."""

    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    num_preemptions: int = 0
    worker_wait_seconds: float = 0.0
    worker_execute_seconds: float = 0.0
    device_idle_seconds: float = 0.0
    device_busy_seconds: float = 0.0
    num_recompiles: int = 0
    bubble_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """How things stand now."""

    num_queued: int
    num_running: int
    num_blocks: int
    num_blocks_in_use: int
    num_blocks_cached: int

    @property
    def is_idle(self) -> bool:
        return self.num_queued == 0 and self.num_running == 0


class StatsClock:
    """Once per interval while something runs, and once when everything has become idle."""

    def __init__(self, interval_seconds: float) -> None:
        self._interval_seconds = interval_seconds
        self._last_sent: float | None = None
        self._was_idle = True

    def is_due(self, now: float, *, is_idle: bool) -> bool:
        """Whether to send stats now; assumes that they are sent then."""
        became_idle = is_idle and not self._was_idle
        is_late = self._last_sent is None or now - self._last_sent >= self._interval_seconds
        self._was_idle = is_idle
        if became_idle or (is_late and not is_idle):
            self._last_sent = now
            return True
        return False


def build_stats(
    dp_rank: int, gauges: Gauges, counters: Counters, hydragen_share: float
) -> ManagerStats:
    return ManagerStats(
        dp_rank=dp_rank,
        num_queued=gauges.num_queued,
        hydragen_share=hydragen_share,
        num_running=gauges.num_running,
        num_blocks=gauges.num_blocks,
        num_blocks_in_use=gauges.num_blocks_in_use,
        num_blocks_cached=gauges.num_blocks_cached,
        num_steps=counters.num_steps,
        num_prompt_tokens=counters.num_prompt_tokens,
        num_cached_tokens=counters.num_cached_tokens,
        num_output_tokens=counters.num_output_tokens,
        num_preemptions=counters.num_preemptions,
        worker_wait_seconds=counters.worker_wait_seconds,
        worker_execute_seconds=counters.worker_execute_seconds,
        device_idle_seconds=counters.device_idle_seconds,
        device_busy_seconds=counters.device_busy_seconds,
        num_recompiles=counters.num_recompiles,
        bubble_seconds=counters.bubble_seconds,
    )
