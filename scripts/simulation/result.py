"""What is left of a replay when it is over, and how parts of one are written, read and joined."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simulation.recording import ReplicaLog, RequestLog


@dataclass(slots=True, kw_only=True, eq=False)
class ReplayResult:
    """Sums are over the replicas."""

    num_blocks: int
    """KV blocks of one replica."""
    seconds: float
    """Virtual time at which the last step ended."""
    cpu_seconds: float
    busy_seconds: float
    num_steps: int
    num_answers: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_preemptions: int
    requests: RequestLog
    logs: list[ReplicaLog]
    """Of the replicas."""


_NUMBERS = [field.name for field in dataclasses.fields(ReplayResult)][:-2]


def join(results: list[ReplayResult]) -> ReplayResult:
    """Of replicas that were replayed apart from each other; there is at least one."""
    requests = RequestLog()
    for result in results:
        requests.append(result.requests.to_arrays())
    sums = {name: sum(getattr(result, name) for result in results) for name in _NUMBERS}
    sums["num_blocks"] = results[0].num_blocks
    sums["seconds"] = max(result.seconds for result in results)
    logs = [log for result in results for log in result.logs]
    return ReplayResult(**sums, requests=requests, logs=logs)


def write_result(path: Path, result: ReplayResult) -> None:
    """Without the predictions."""
    arrays = {name: np.array(getattr(result, name)) for name in _NUMBERS}
    parts = [result.requests.to_arrays(), *(log.to_arrays() for log in result.logs)]
    for index, part in enumerate(parts):
        arrays |= {f"{index}.{name}": values for name, values in part.items()}
    np.savez(path, allow_pickle=False, **arrays)


def read_result(path: Path) -> ReplayResult:
    with np.load(path) as file:
        numbers = {name: file[name].item() for name in _NUMBERS}
        parts: dict[int, dict[str, np.ndarray]] = {}
        for key in file.files:
            index, is_part, name = key.partition(".")
            if is_part:
                parts.setdefault(int(index), {})[name] = file[key]
    requests = RequestLog()
    requests.append(parts.pop(0))
    logs = [ReplicaLog.from_arrays(parts[index]) for index in sorted(parts)]
    return ReplayResult(**numbers, requests=requests, logs=logs)
