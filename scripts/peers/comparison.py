"""What a run of a workload says of an engine, and how engines compare: medians over the rounds and
medians of the ratios within each round, as the machine's speed wanders from round to round."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from peers.protocol import Answer
from workloads import Workload


@dataclass(frozen=True, slots=True)
class Metric:
    title: str
    workload: str
    measure: Callable[[Workload, Answer], float]
    is_higher_better: bool = True

    def ratio(self, ours: float, peer: float) -> float:
        """Above 1: ours is better."""
        return ours / peer if self.is_higher_better else peer / ours


def output_rate(workload: Workload, answer: Answer) -> float:
    """Output tokens per second of the whole run."""
    return workload.num_seqs * workload.num_output_tokens / answer.seconds


def decode_rate(workload: Workload, answer: Answer) -> float:
    """Output tokens after the first over the time after the first token."""
    num_decoded = workload.num_seqs * (workload.num_output_tokens - 1)
    return num_decoded / (answer.seconds - min(answer.ttft_seconds))


def ttft_milliseconds(_: Workload, answer: Answer) -> float:
    """Median over the prompts."""
    return 1000 * statistics.median(answer.ttft_seconds)


def prefill_rate(workload: Workload, answer: Answer) -> float:
    """Prompt tokens over the time to the last first token."""
    num_prompt_tokens = workload.num_seqs * (workload.num_shared + workload.num_own)
    return num_prompt_tokens / max(answer.ttft_seconds)


METRICS = [
    Metric("W1 output tokens/s", "W1", output_rate),
    Metric("W2 decode tokens/s", "W2", decode_rate),
    Metric("W2 TTFT ms", "W2", ttft_milliseconds, is_higher_better=False),
    Metric("W3 output tokens/s", "W3", output_rate),
    Metric("W4 prefill tokens/s", "W4", prefill_rate),
]

Round = dict[str, float]
"""A metric of one workload's round, by engine."""


class Comparison:
    """Rounds of one data type, by metric."""

    def __init__(self, ours: str) -> None:
        self.ours = ours
        self.rounds: dict[str, list[Round]] = {metric.title: [] for metric in METRICS}

    def add(self, name: str, workload: Workload, answers: dict[str, Answer]) -> None:
        """One round: what every engine answered to the same prompts."""
        for metric in METRICS:
            if metric.workload == name:
                self.rounds[metric.title].append(
                    {engine: metric.measure(workload, answer) for engine, answer in answers.items()}
                )

    def median(self, metric: Metric, engine: str) -> float:
        return statistics.median(round_[engine] for round_ in self.rounds[metric.title])

    def median_ratio(self, metric: Metric, peer: str) -> float:
        rounds = self.rounds[metric.title]
        return statistics.median(metric.ratio(round_[self.ours], round_[peer]) for round_ in rounds)

    def table(self) -> str:
        """In Markdown: a row per engine, a column per measured metric."""
        metrics = [metric for metric in METRICS if self.rounds[metric.title]]
        engines = list(self.rounds[metrics[0].title][0]) if metrics else []
        lines = [
            "| engine | " + " | ".join(metric.title for metric in metrics) + " |",
            "|---" * (len(metrics) + 1) + "|",
        ]
        for engine in engines:
            cells = [self._cell(metric, engine) for metric in metrics]
            lines.append(f"| {engine} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def _cell(self, metric: Metric, engine: str) -> str:
        value = f"{self.median(metric, engine):.1f}"
        if engine == self.ours:
            return value
        return f"{value} ({self.median_ratio(metric, engine):.2f}x)"
