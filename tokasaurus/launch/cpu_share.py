"""How many threads each process may compute with, and the environment that tells libraries so."""

import os
from collections.abc import Mapping
from pathlib import Path

import psutil

from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.launch.topology import ProcessSpec

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
_SPIN_VARIABLE, _SPIN_COUNT = "GOMP_SPINCOUNT", "2000"
"""A computing thread that waits gives its core up after about 10 microseconds. By default it spins
for milliseconds, and every wait costs a time slice where another process needs the core."""
_CGROUP_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Physical cores, within this process's affinity and its container's CPU limit."""
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    try:
        quota, period = _CGROUP_CPU_LIMIT.read_text().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass  # no such limit: quota reads "max", or there is no cgroup
    return max(1, cores)


def thread_environment(
    config: EngineConfig, spec: ProcessSpec, environment: Mapping[str, str], cores: int
) -> dict[str, str]:
    """Variables to add to `environment` for this process.

    A worker computes with `cpu_threads` threads, by default what the user's environment says or
    else its share of the cores; the others do no linear algebra.
    """
    if spec.role != "worker":
        return dict.fromkeys(_THREAD_VARIABLES, "1")
    spinning = {} if _SPIN_VARIABLE in environment else {_SPIN_VARIABLE: _SPIN_COUNT}
    if config.cpu_threads is None and environment.get("OMP_NUM_THREADS"):
        return spinning
    num_workers = config.dp_size * config.pp_size * config.tp_size
    threads = config.cpu_threads or max(1, cores // num_workers)
    return dict.fromkeys(_THREAD_VARIABLES, str(threads)) | spinning
