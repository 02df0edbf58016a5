"""What `bench_server.py` measures of a server process, and how it is summed up and shown."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
from server_load import Clients

SCHEDULER_STATISTICS = Path("/proc/self/schedstat")
"""Where the kernel counts CPU time in nanoseconds, per thread."""


@dataclass(frozen=True)
class Result:
    """Medians over the runs, where nothing else is said."""

    endpoint: str
    kind: str
    """"stream" or "whole"."""
    num_streams: int
    tokens_together: int
    cpu_us: float
    """Server CPU per streamed token, or per request of one token."""
    kernel_us: float
    """What of `cpu_us` is spent in system calls, loopback delivery included."""
    lowest_cpu_us: float
    """Of the run that the rest of the machine disturbed least."""
    bare_us: float
    """The bare app's, for the same bytes."""
    lowest_bare_us: float
    per_second: float
    """Tokens or requests per second of wall time, clients and engine included."""
    writes_per_step: float
    """How often a stream's news arrived, per step."""
    tokenizing_us: float
    """What of `cpu_us` is spent on the prompt's tokens."""
    ratio: float
    """To the bare app in the same round, tokenizing left out."""
    lowest_ratio: float
    highest_ratio: float


class Round(NamedTuple):
    """One measurement of both, in seconds."""

    ours: "Cpu"
    bare: float
    tokenizing: float
    per_second: float
    writes: float

    @property
    def ratio(self) -> float:
        return (self.ours.total - self.tokenizing) / max(self.bare, 1e-9)


class Cpu(NamedTuple):
    """Seconds; `total` includes those in the kernel."""

    total: float
    kernel: float

    def since(self, earlier: "Cpu", count: int) -> "Cpu":
        """Per one of `count`."""
        return Cpu((self.total - earlier.total) / count, (self.kernel - earlier.kernel) / count)


class Target:
    """A server process under measurement, and connections to it."""

    def __init__(self, pid: int, port: int) -> None:
        self._process = psutil.Process(pid)
        self._port = port

    async def connect(self, count: int) -> Clients:
        clients = Clients()
        await clients.connect("127.0.0.1", self._port, count)
        return clients

    def cpu(self) -> "Cpu":
        """Of all its threads so far."""
        times = self._process.cpu_times()
        total = times.user + times.system  # in steps of 10 ms
        if SCHEDULER_STATISTICS.exists():
            folders = Path(f"/proc/{self._process.pid}/task").iterdir()
            total = sum(int((f / "schedstat").read_text().split()[0]) for f in folders) / 1e9
        return Cpu(total, times.system)


def result_of(
    endpoint: str,
    kind: str,
    num_streams: int,
    together: int,
    rounds: list[Round],
) -> Result:
    totals = [one.ours.total for one in rounds]
    bares = [one.bare for one in rounds]
    ratios = [one.ratio for one in rounds]
    return Result(
        endpoint=endpoint,
        kind=kind,
        num_streams=num_streams,
        tokens_together=together,
        cpu_us=statistics.median(totals) * 1e6,
        kernel_us=statistics.median(one.ours.kernel for one in rounds) * 1e6,
        lowest_cpu_us=min(totals) * 1e6,
        bare_us=statistics.median(bares) * 1e6,
        lowest_bare_us=min(bares) * 1e6,
        per_second=statistics.median(one.per_second for one in rounds),
        writes_per_step=statistics.median(one.writes for one in rounds),
        tokenizing_us=statistics.median(one.tokenizing for one in rounds) * 1e6,
        ratio=statistics.median(ratios),
        lowest_ratio=min(ratios),
        highest_ratio=max(ratios),
    )


HEADER = (
    "| endpoint | kind | clients | tokens together | CPU us per token or request "
    "| lowest | of it kernel | of it tokenizing | bare app us | lowest | ratio (range) "
    "| per second | writes per step |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def row_of(result: Result) -> str:
    return (
        f"| {result.endpoint} | {result.kind} | {result.num_streams} | {result.tokens_together} "
        f"| {result.cpu_us:.1f} | {result.lowest_cpu_us:.1f} | {result.kernel_us:.1f} "
        f"| {result.tokenizing_us:.0f} | {result.bare_us:.1f} | {result.lowest_bare_us:.1f} "
        f"| {result.ratio:.2f} ({result.lowest_ratio:.2f}-{result.highest_ratio:.2f}) "
        f"| {result.per_second:,.0f} | {result.writes_per_step:.2f} |"
    )
