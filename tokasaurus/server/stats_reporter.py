"""Says once per interval how things go: a log line while something happens, and statsd packets."""

import asyncio
import logging
import time

from tokasaurus.observability import metrics
from tokasaurus.observability.measurements import Histogram, Measurements
from tokasaurus.observability.metrics import Metric
from tokasaurus.observability.statsd import StatsdSender
from tokasaurus.server.errors import ServerNotReadyError
from tokasaurus.server.totals import Totals

log = logging.getLogger(__name__)

_COUNTED = (
    metrics.PROMPT_TOKENS,
    metrics.CACHED_TOKENS,
    metrics.OUTPUT_TOKENS,
    metrics.PREEMPTIONS,
    metrics.REQUESTS_FINISHED,
)


class StatsReporter:
    """Of several servers, one reports on all."""

    def __init__(
        self, totals: Totals, interval_seconds: float, statsd: StatsdSender | None
    ) -> None:
        self._totals = totals
        self._interval_seconds = interval_seconds
        self._statsd = statsd
        self._lines = StatsLines(totals.measurements)

    async def run(self) -> None:
        """Until cancelled; then it sends to statsd what is left."""
        try:
            while True:
                await asyncio.sleep(self._interval_seconds)
                await self.report()
        finally:
            self._totals.refresh_own()
            self._send()
            if self._statsd is not None:
                self._statsd.close()

    async def report(self) -> None:
        """Say how things went since the last time."""
        try:
            await self._totals.refresh()
        except ServerNotReadyError as error:
            log.warning("no statistics: %s", error)
            return
        line = self._lines.next(time.monotonic())
        if line is not None:
            log.info(line)
        self._send()

    def _send(self) -> None:
        if self._statsd is not None:
            self._statsd.send()


class StatsLines:
    """Each line is about the time since the one before."""

    def __init__(self, measurements: Measurements) -> None:
        self._measurements = measurements
        self._before = self._totals()
        self._first_tokens_before = self._first_tokens()
        self._since = time.monotonic()

    def next(self, now: float) -> str | None:
        """None if nothing has happened and nothing runs."""
        totals, first_tokens = self._totals(), self._first_tokens()
        # A manager that was replaced counts from 0 again.
        news = {m: max(0.0, totals[m] - self._before[m]) for m in _COUNTED}
        first = first_tokens.minus(self._first_tokens_before)
        seconds = max(now - self._since, 1e-9)
        self._before, self._first_tokens_before, self._since = totals, first_tokens, now
        total = self._measurements.total
        if not any(news.values()) and not total(metrics.IN_FLIGHT):
            return None
        prompt, blocks = news[metrics.PROMPT_TOKENS], total(metrics.KV_BLOCKS)
        parts = [
            f"{total(metrics.RUNNING):.0f} running",
            f"{total(metrics.QUEUED):.0f} queued",
            f"{news[metrics.REQUESTS_FINISHED]:.0f} finished",
            f"prompt {prompt / seconds:.0f} tok/s",
            f"output {news[metrics.OUTPUT_TOKENS] / seconds:.0f} tok/s",
            f"cached {news[metrics.CACHED_TOKENS] / max(prompt, 1):.0%}",
            f"KV {total(metrics.KV_BLOCKS_IN_USE) / max(blocks, 1):.0%}",
            f"{news[metrics.PREEMPTIONS]:.0f} preempted",
        ]
        if first.count:
            parts.append(f"TTFT p50 {first.quantile(0.5):.3g} s p95 {first.quantile(0.95):.3g} s")
        return ", ".join(parts)

    def _totals(self) -> dict[Metric, float]:
        return {metric: self._measurements.total(metric) for metric in _COUNTED}

    def _first_tokens(self) -> Histogram:
        return self._measurements.total_histogram(metrics.TIME_TO_FIRST_TOKEN)
