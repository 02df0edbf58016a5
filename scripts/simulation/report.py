"""Sums up a replay in numbers, and prints them for people."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from simulation.recording import ReplicaLog
from simulation.result import ReplayResult

_RAMP_SHARE = 0.1
"""Part of a replica's backlogged time that counts as filling up rather than as steady."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Times are virtual; those of the CPU are what replaying took. NaN: nothing to measure."""

    num_requests: int
    num_refused: int
    seconds: float
    output_tokens_per_second: float
    prompt_tokens_per_second: float
    """Cached ones included."""
    cached_share: float
    """Of the prompt tokens."""
    device_busy_share: float
    kv_use_mean: float
    """Share of the blocks that running sequences reference, over all of the time."""
    kv_use_steady_mean: float
    """The same while requests wait for a seat, less the first tenth of that time."""
    kv_use_steady_p5: float
    kv_use_steady_p50: float
    kv_use_steady_p95: float
    num_preemptions: int
    preempted_share: float
    """Of the requests, those preempted at least once."""
    ttft_p50: float
    ttft_p90: float
    ttft_p99: float
    itl_p50: float
    itl_p90: float
    itl_p99: float
    itl_max: float
    queue_wait_p50: float
    queue_wait_max: float
    """From arrival until the first chunk of the prefill is scheduled."""
    max_overtaken: int
    """Places that a request lost in the order of its replica; 0: strictly first come."""
    kv_reads_saved_share: float
    """Of the block reads of decodes, those that Hydragen groups save."""
    kv_reads_shared_share: float
    """The same if groups were nested down to every block that two sequences share."""
    num_running_mean: float
    num_steps: int
    num_answers: int
    """Steps that managers had to take in: the passes of a lease are steps with one answer."""
    cpu_seconds: float
    cpu_us_per_step: float


def build_report(result: ReplayResult) -> Report:
    requests, logs = result.requests, result.logs
    seconds = result.seconds or float("nan")
    usage, usage_weights = _usage(result, steady=False)
    steady, steady_weights = _usage(result, steady=True)
    ttft = requests.first_token - requests.arrival
    wait = requests.started - requests.arrival
    p5, p50, p95 = weighted_percentiles(steady, steady_weights, [5, 50, 95])
    num_reads, num_saved, num_shared = np.sum([log.block_reads for log in logs], axis=0)
    return Report(
        num_requests=requests.num_requests,
        num_refused=requests.num_refused,
        seconds=result.seconds,
        output_tokens_per_second=requests.num_output_tokens / seconds,
        prompt_tokens_per_second=result.num_prompt_tokens / seconds,
        cached_share=result.num_cached_tokens / max(result.num_prompt_tokens, 1),
        device_busy_share=result.busy_seconds / seconds / len(logs),
        kv_use_mean=_mean(usage, usage_weights),
        kv_use_steady_mean=_mean(steady, steady_weights),
        kv_use_steady_p5=p5,
        kv_use_steady_p50=p50,
        kv_use_steady_p95=p95,
        num_preemptions=result.num_preemptions,
        preempted_share=np.count_nonzero(requests.num_preemptions) / max(requests.num_requests, 1),
        **{f"ttft_p{percent}": _percentile(ttft, percent) for percent in (50, 90, 99)},
        **{f"itl_p{percent}": requests.gaps.percentile(percent) for percent in (50, 90, 99)},
        itl_max=requests.gaps.percentile(100),
        queue_wait_p50=_percentile(wait, 50),
        queue_wait_max=_percentile(wait, 100),
        max_overtaken=max(max_overtaken(log) for log in logs),
        kv_reads_saved_share=float(num_saved / max(num_reads, 1)),
        kv_reads_shared_share=float(num_shared / max(num_reads, 1)),
        num_running_mean=sum(_mean(log.running[:-1], np.diff(log.times)) for log in logs)
        / len(logs),
        num_steps=result.num_steps,
        num_answers=result.num_answers,
        cpu_seconds=result.cpu_seconds,
        cpu_us_per_step=1e6 * result.cpu_seconds / max(result.num_steps, 1),
    )


def _usage(result: ReplayResult, *, steady: bool) -> tuple[np.ndarray, np.ndarray]:
    """(shares of the blocks in use, seconds that each of them lasted) of all replicas."""
    shares, weights = [np.empty(0)], [np.empty(0)]
    for log in result.logs:
        share = log.blocks_in_use[:-1] / result.num_blocks
        weight = np.diff(log.times)
        if steady:
            is_steady = steady_part(log)[:-1]
            share, weight = share[is_steady], weight[is_steady]
        shares.append(share)
        weights.append(weight)
    return np.concatenate(shares), np.concatenate(weights)


def steady_part(log: ReplicaLog) -> np.ndarray:
    """bool per sample: requests wait, and have done so for a tenth of all the time they do."""
    is_backlogged = log.queued > 0
    seconds = np.diff(log.times, append=log.times[-1:]) * is_backlogged
    elapsed = np.cumsum(seconds)
    return is_backlogged & (elapsed > _RAMP_SHARE * elapsed[-1:])


def max_overtaken(log: ReplicaLog) -> int:
    """How many places the unluckiest request lost between arriving and starting."""
    if not log.start_order:
        return 0
    ids = np.frombuffer(log.start_order, np.int64)
    places = np.argsort(np.argsort(ids))
    return int(np.max(np.arange(ids.size) - places, initial=0))


def weighted_percentiles(
    values: np.ndarray, weights: np.ndarray, percents: list[float]
) -> list[float]:
    """NaN if nothing has weight."""
    order = np.argsort(values)
    cumulated = np.cumsum(weights[order])
    if not cumulated.size or not cumulated[-1]:
        return [float("nan")] * len(percents)
    places = np.searchsorted(cumulated, np.array(percents) / 100 * cumulated[-1])
    return [float(value) for value in values[order][np.minimum(places, values.size - 1)]]


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    total = weights.sum()
    return float((values * weights).sum() / total) if total else float("nan")


def _percentile(values: np.ndarray, percent: float) -> float:
    values = values[~np.isnan(values)]
    return float(np.percentile(values, percent)) if values.size else float("nan")


def as_dict(report: Report) -> dict[str, float | None]:
    """For JSON, which has no NaN."""
    fields = dataclasses.asdict(report)
    return {name: None if value != value else value for name, value in fields.items()}


def format_table(reports: dict[str, Report]) -> str:
    """One column per report."""
    rows = [["", *reports]]
    for field in dataclasses.fields(Report):
        values = [getattr(report, field.name) for report in reports.values()]
        rows.append([field.name, *(_format(field.name, value) for value in values)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    )


def _format(name: str, value: float) -> str:
    if value != value:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if name.endswith("_share") or name.startswith("kv_use"):
        return f"{100 * value:.2f}%"
    if name.startswith("itl"):
        return f"{1000 * value:.2f} ms"
    if name.startswith(("ttft", "queue_wait")) or name.endswith("seconds"):
        return f"{value:,.3f} s"
    return f"{value:,.1f}"
