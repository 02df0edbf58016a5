"""Replays groups of replicas in processes of their own and joins what they report."""

import dataclasses
import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path

from simulation.dealing import deal, split
from simulation.replay import Deployment, EngineFactory, Replay
from simulation.result import ReplayResult, join, read_result, write_result
from simulation.workload import Trace


class ProcessError(Exception):
    """A process did not get to the end of its replay."""


def replay_in_processes(
    deployment: Deployment,
    make_engine: EngineFactory,
    make_trace: Callable[[], Trace],
    num_processes: int,
) -> ReplayResult:
    """Every process makes the whole trace and keeps its share. Raises ProcessError."""
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for group in split(deployment.num_replicas, num_processes):
            path = Path(folder) / f"{group.start}.npz"
            arguments = (deployment, make_engine, make_trace, group, path)
            process = fork.Process(target=_replay_group, args=arguments, daemon=True)
            process.start()
            started.append((group, process, path))
        for _, process, _ in started:
            process.join()
        for group, process, _ in started:
            if process.exitcode:
                raise ProcessError(
                    f"replaying the replicas {group.start} to {group.stop - 1} ended with exit "
                    f"code {process.exitcode}; what went wrong is above"
                )
        return join([read_result(path) for _, _, path in started])


def _replay_group(
    deployment: Deployment,
    make_engine: EngineFactory,
    make_trace: Callable[[], Trace],
    group: range,
    path: Path,
) -> None:
    replay = Replay(dataclasses.replace(deployment, num_replicas=len(group)), make_engine)
    replay.run(deal(make_trace(), deployment, group))
    write_result(path, replay.result())
