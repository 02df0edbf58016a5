"""What the device can do at most: bytes copied and matrix products computed per second."""

import statistics
import time
from collections.abc import Callable

import torch

from gpu_check_parts.findings import Findings, findings_of
from gpu_check_parts.part import CheckError, Setting

_REPEATS = 9


def measure_ceilings(setting: Setting, findings: Findings) -> None:
    copy_bytes = setting.pick(4 << 30, 16 << 20)
    source = torch.randint(256, (copy_bytes,), dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    seconds = median_seconds(lambda: target.copy_(source), setting)
    findings.add(what="copy", bytes_per_second=2 * copy_bytes / seconds)
    size = setting.pick(8192, 256)
    left, right = (
        torch.randn(size, size, device=setting.device, dtype=setting.dtype) for _ in range(2)
    )
    seconds = median_seconds(lambda: left @ right, setting)
    findings.add(what="matmul", flops_per_second=2 * size**3 / seconds, dtype=str(setting.dtype))


def ceilings(setting: Setting) -> tuple[float, float]:
    """(bytes per second, FLOPs per second) as measured in this run. Raises CheckError."""
    found = {row["what"]: row for row in findings_of(setting.out, "ceilings")}
    if not {"copy", "matmul"} <= found.keys():
        raise CheckError("the part 'ceilings' has not measured; run it first")
    return found["copy"]["bytes_per_second"], found["matmul"]["flops_per_second"]


def median_seconds(run: Callable[[], object], setting: Setting) -> float:
    """Of one call on the device, after warm-up; timed with events on a GPU."""
    for _ in range(3):
        run()
    setting.synchronize()
    times = []
    for _ in range(_REPEATS):
        if setting.is_cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        else:
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
    return statistics.median(times)
