"""The catalogue of metrics: every name, unit and meaning that Prometheus and statsd show.

Names follow Prometheus: base units as suffixes, `_total` for counters, `_ratio` for shares of 1.
"""

from typing import Literal

import msgspec

Kind = Literal["counter", "gauge", "histogram"]


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One metric; its series are told apart by the values of `labels`."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    """Of a histogram's buckets: ascending, each including its bound; +Inf comes on top."""
    over_servers: Literal["sum", "same", "least"] = "sum"
    """What the values of several server processes make together; "same": managers told all."""


_LATENCY_BOUNDS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip
_TOKEN_LATENCY_BOUNDS = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 5.0,
)  # fmt: skip
_TOKEN_COUNT_BOUNDS = tuple(float(2**power) for power in range(18))
_BATCH_BOUNDS = tuple(float(2**power) for power in range(13))
_PER_REPLICA = ("dp_rank",)


def _histogram(name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Metric:
    return Metric(
        name=f"tokasaurus_{name}", kind="histogram", help=text, bounds=bounds, labels=labels
    )


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(
        name=f"tokasaurus_{name}_total",
        kind="counter",
        help=text,
        labels=labels,
        over_servers=_over_servers(labels),
    )


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(
        name=f"tokasaurus_{name}",
        kind="gauge",
        help=text,
        labels=labels,
        over_servers=_over_servers(labels),
    )


def _over_servers(labels: tuple[str, ...]) -> Literal["sum", "same"]:
    return "same" if labels == _PER_REPLICA else "sum"


TIME_TO_FIRST_TOKEN = _histogram(
    "time_to_first_token_seconds",
    "From a sample's submission to its first output token.",
    _LATENCY_BOUNDS,
    *_PER_REPLICA,
)
INTER_TOKEN_LATENCY = _histogram(
    "inter_token_latency_seconds",
    "Time between output tokens of a sample; tokens that come together share it evenly.",
    _TOKEN_LATENCY_BOUNDS,
    *_PER_REPLICA,
)
REQUEST_DURATION = _histogram(
    "request_duration_seconds",
    "From a sample's submission to its end, of those that were not cancelled and did not fail.",
    _LATENCY_BOUNDS,
    *_PER_REPLICA,
)
QUEUE_TIME = _histogram(
    "queue_time_seconds",
    "From a sample's arrival at its manager to its first onboarding.",
    _LATENCY_BOUNDS,
    *_PER_REPLICA,
)
REQUEST_PROMPT_TOKENS = _histogram(
    "request_prompt_tokens",
    "Prompt tokens of a finished sample.",
    _TOKEN_COUNT_BOUNDS,
    *_PER_REPLICA,
)
REQUEST_OUTPUT_TOKENS = _histogram(
    "request_output_tokens",
    "Output tokens of a finished sample.",
    _TOKEN_COUNT_BOUNDS,
    *_PER_REPLICA,
)
BATCH_SIZE = _histogram(
    "batch_size_sequences",
    "Sequences that got tokens in one message of a manager, once for each pass of it.",
    _BATCH_BOUNDS,
    *_PER_REPLICA,
)
REQUESTS_FINISHED = _counter(
    "requests_finished", "Samples that ended, by finish reason.", "finish_reason"
)
HTTP_RESPONSES = _counter(
    "http_responses", "Responses, by method, route and status.", "method", "route", "status"
)

PROMPT_TOKENS = _counter("prompt_tokens", "Prompt tokens of onboarded sequences.", *_PER_REPLICA)
CACHED_TOKENS = _counter(
    "cached_prompt_tokens", "Prompt tokens whose KV was found in the cache.", *_PER_REPLICA
)
OUTPUT_TOKENS = _counter("output_tokens", "Tokens drawn.", *_PER_REPLICA)
PREEMPTIONS = _counter("preemptions", "Sequences preempted for lack of KV blocks.", *_PER_REPLICA)
STEPS = _counter("steps", "Forward passes.", *_PER_REPLICA)
WORKER_WAIT = _counter(
    "worker_wait_seconds", "Time that a worker had nothing to run.", *_PER_REPLICA
)
WORKER_EXECUTE = _counter("worker_execute_seconds", "Time that a worker ran steps.", *_PER_REPLICA)
DEVICE_IDLE = _counter(
    "device_idle_seconds",
    "Time that a GPU had run out of work although its worker had a step.",
    *_PER_REPLICA,
)
DEVICE_BUSY = _counter(
    "device_busy_seconds", "Time from the first to the last kernel of steps.", *_PER_REPLICA
)
PIPELINE_BUBBLES = _counter(
    "pipeline_bubble_seconds",
    "Time within steps that the last pipeline stage waited for the others.",
    *_PER_REPLICA,
)
RECOMPILES = _counter(
    "recompiles", "Graphs that torch compiled after warm-up; there should be none.", *_PER_REPLICA
)

RUNNING = _gauge("sequences_running", "Sequences onboarded.", *_PER_REPLICA)
QUEUED = _gauge("sequences_queued", "Sequences waiting to be onboarded.", *_PER_REPLICA)
KV_BLOCKS = _gauge("kv_blocks", "Blocks of the KV cache.", *_PER_REPLICA)
KV_BLOCKS_IN_USE = _gauge(
    "kv_blocks_in_use", "Blocks that running sequences reference.", *_PER_REPLICA
)
KV_BLOCKS_CACHED = _gauge(
    "kv_blocks_cached", "Unreferenced blocks that still hold a reusable prefix.", *_PER_REPLICA
)
KV_USAGE = _gauge(
    "kv_usage_ratio", "Share of the KV blocks that running sequences reference.", *_PER_REPLICA
)
PREFIX_HITS = _gauge(
    "prefix_cache_hit_ratio",
    "Share of all prompt tokens so far whose KV was found in the cache.",
    *_PER_REPLICA,
)
HYDRAGEN_SHARE = _gauge(
    "hydragen_kv_ratio",
    "Share of the KV tokens that decodes attend to which lie in prefixes read once per group.",
    *_PER_REPLICA,
)
IN_FLIGHT = _gauge("requests_in_flight", "Samples that are submitted and have not ended.")
READY = msgspec.structs.replace(
    _gauge("ready", "1 if requests are taken, else 0."), over_servers="least"
)

CATALOGUE = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
