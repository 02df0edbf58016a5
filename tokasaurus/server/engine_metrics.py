"""Measures requests as a front end sees them, and takes over what managers count."""

from tokasaurus.ipc.messages.to_server import ManagerStats
from tokasaurus.observability import metrics
from tokasaurus.observability.measurements import Histogram, Measurements
from tokasaurus.observability.metrics import Metric
from tokasaurus.observability.tracing import SampleTimes
from tokasaurus.server.generation import Generation

_FIELDS = {
    metrics.PROMPT_TOKENS: "num_prompt_tokens",
    metrics.CACHED_TOKENS: "num_cached_tokens",
    metrics.OUTPUT_TOKENS: "num_output_tokens",
    metrics.PREEMPTIONS: "num_preemptions",
    metrics.STEPS: "num_steps",
    metrics.WORKER_WAIT: "worker_wait_seconds",
    metrics.WORKER_EXECUTE: "worker_execute_seconds",
    metrics.DEVICE_IDLE: "device_idle_seconds",
    metrics.DEVICE_BUSY: "device_busy_seconds",
    metrics.PIPELINE_BUBBLES: "bubble_seconds",
    metrics.RECOMPILES: "num_recompiles",
    metrics.RUNNING: "num_running",
    metrics.QUEUED: "num_queued",
    metrics.KV_BLOCKS: "num_blocks",
    metrics.KV_BLOCKS_IN_USE: "num_blocks_in_use",
    metrics.KV_BLOCKS_CACHED: "num_blocks_cached",
    metrics.HYDRAGEN_SHARE: "hydragen_share",
}
"""Metrics that are a field of ManagerStats as it is."""


class EngineMetrics:
    """Told by the engine client; `now` is the monotonic clock, read once per message."""

    def __init__(self, num_managers: int) -> None:
        """Every replica has its series from the start, so that exporters show them empty."""
        self.measurements = Measurements()
        self._replicas = [
            _ReplicaHistograms(self.measurements, dp_rank) for dp_rank in range(num_managers)
        ]

    def note_tokens(
        self,
        dp_rank: int,
        num_sequences: int,
        num_passes: int,
        news: list[tuple[Generation, int]],
        now: float,
    ) -> None:
        """A message has come with tokens of so many sequences, from so many passes: samples that
        still run, and how many tokens each of them got."""
        replica = self._replicas[dp_rank]
        if num_passes:
            replica.batch_size.observe(num_sequences, num_passes)
        intervals: dict[tuple[float, int], int] = {}
        for generation, num_tokens in news:
            if not num_tokens:
                continue
            last, generation.last_token_at = generation.last_token_at, now
            if last is None:
                replica.time_to_first_token.observe(now - generation.submitted_at)
            else:
                key = last, num_tokens
                intervals[key] = intervals.get(key, 0) + 1
        # Most samples had their last tokens by the same message.
        for (last, num_tokens), count in intervals.items():
            replica.inter_token_latency.observe((now - last) / num_tokens, num_tokens * count)

    def note_finished(
        self, generation: Generation, now: float, queue_seconds: float | None = None
    ) -> None:
        """Called once per sample, when its manager has let go of it."""
        reason = generation.finish_reason
        assert reason is not None, "the sample has not finished"
        self.measurements.number(metrics.REQUESTS_FINISHED, reason).value += 1
        replica = self._replicas[generation.dp_rank]
        if queue_seconds is not None:
            replica.queue_time.observe(queue_seconds)
        if reason in ("stop", "length"):
            replica.duration.observe(now - generation.submitted_at)
            replica.prompt_tokens.observe(generation.num_prompt_tokens)
            replica.output_tokens.observe(len(generation.output_ids))
        if generation.trace is not None:
            generation.trace.end_sample(_times_of(generation, now, queue_seconds))

    def note_stats(self, stats: ManagerStats) -> None:
        rank = str(stats.dp_rank)
        number = self.measurements.number
        for metric, field in _FIELDS.items():
            number(metric, rank).value = getattr(stats, field)
        number(metrics.KV_USAGE, rank).value = stats.num_blocks_in_use / max(stats.num_blocks, 1)
        number(metrics.PREFIX_HITS, rank).value = stats.num_cached_tokens / max(
            stats.num_prompt_tokens, 1
        )

    def note_client(self, *, num_in_flight: int, is_ready: bool) -> None:
        """How the client stands now; called before measurements are shown."""
        self.measurements.number(metrics.IN_FLIGHT).value = num_in_flight
        self.measurements.number(metrics.READY).value = is_ready


class _ReplicaHistograms:
    """The series of one manager's samples."""

    def __init__(self, measurements: Measurements, dp_rank: int) -> None:
        def histogram(metric: Metric) -> Histogram:
            return measurements.histogram(metric, str(dp_rank))

        self.time_to_first_token = histogram(metrics.TIME_TO_FIRST_TOKEN)
        self.inter_token_latency = histogram(metrics.INTER_TOKEN_LATENCY)
        self.duration = histogram(metrics.REQUEST_DURATION)
        self.queue_time = histogram(metrics.QUEUE_TIME)
        self.prompt_tokens = histogram(metrics.REQUEST_PROMPT_TOKENS)
        self.output_tokens = histogram(metrics.REQUEST_OUTPUT_TOKENS)
        self.batch_size = histogram(metrics.BATCH_SIZE)


def _times_of(generation: Generation, now: float, queue_seconds: float | None) -> SampleTimes:
    error, begun = generation.error, generation.submitted_at
    return SampleTimes(
        index=generation.index,
        submitted_at=generation.submitted_at,
        queue_seconds=queue_seconds,
        first_token_at=generation.first_token_at,
        ended_at=now,
        num_prompt_tokens=generation.num_prompt_tokens,
        num_cached_tokens=generation.num_cached_tokens,
        num_output_tokens=len(generation.output_ids),
        num_preemptions=generation.num_preemptions,
        preempted=[
            (begun + lost, now if resumed is None else begun + resumed)
            for lost, resumed in generation.preemptions
        ],
        finish_reason=str(generation.finish_reason),
        error=None if error is None else f"{type(error).__name__}: {error}",
    )
