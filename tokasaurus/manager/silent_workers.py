"""Which of the workers that owe a step hang, as far as the operating system can tell."""

from collections.abc import Sequence

import psutil

_HALTED = (
    psutil.STATUS_STOPPED,
    psutil.STATUS_TRACING_STOP,
    psutil.STATUS_DISK_SLEEP,
    psutil.STATUS_ZOMBIE,
)


def describe_silence(dp_rank: int, pids: Sequence[int]) -> str:
    """Names those whose processes can't run; if all can, all of them. `pids` are by rank."""
    halted = []
    for rank, pid in enumerate(pids):
        state = _state(pid)
        if state in _HALTED:
            halted.append(f"worker{dp_rank}.{rank} hangs ({state})")
    if halted:
        return " and ".join(halted)
    if len(pids) > 1:
        return f"one of worker{dp_rank}.0 to worker{dp_rank}.{len(pids) - 1} hangs"
    return f"worker{dp_rank}.0 hangs"


def _state(pid: int) -> str:
    try:
        return psutil.Process(pid).status()
    except psutil.Error:
        return psutil.STATUS_DEAD
