"""A `toka` process for tests: on a free port, with its output kept, ended at the latest with it."""

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

import psutil

READY = re.compile(r"Serving (\S+) at (https?://\S+?)/v1")


@dataclass
class EngineProcess:
    """Use as a context manager; `url` and `model` are there after `wait_until_ready`."""

    options: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    url: str = ""
    model: str = ""
    lines: list[str] = field(default_factory=list)

    def __enter__(self) -> "EngineProcess":
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "tokasaurus.cli.toka", "port=0", *self.options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **self.environment},
            process_group=0,  # as a shell does it
        )
        self._news: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait(timeout=60)
        self._reader.join(timeout=60)

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_until_ready(self, timeout_seconds: float = 280) -> None:
        deadline = time.monotonic() + timeout_seconds
        while not self.url:
            if match := READY.search(self._next_line(deadline, "being ready")):
                self.model, self.url = match.groups()

    def wait_for_line(self, pattern: str, timeout_seconds: float = 60) -> str:
        """The first line not waited for yet that the pattern is found in."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            line = self._next_line(deadline, repr(pattern))
            if re.search(pattern, line):
                return line

    def _next_line(self, deadline: float, wanted: str) -> str:
        try:
            line = self._news.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise AssertionError(f"no {wanted} in time:\n{self.output}") from None
        if line is None:
            raise AssertionError(
                f"toka ended with {self.popen.wait(60)} without {wanted}:\n{self.output}"
            )
        return line

    def children(self) -> dict[str, psutil.Process]:
        """The engine's processes, by name; without those that have just ended."""
        named = {}
        for child in psutil.Process(self.popen.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if line := child.cmdline():
                    named[line[-1]] = child
        return named

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_seconds: float = 60) -> int:
        """Send the signal and return the exit code."""
        self.popen.send_signal(number)
        return self.wait(timeout_seconds)

    def wait(self, timeout_seconds: float = 60) -> int:
        code = self.popen.wait(timeout=timeout_seconds)
        self._reader.join(timeout=60)
        return code

    def _read(self) -> None:
        assert self.popen.stdout is not None
        with self.popen.stdout as stream:
            for line in stream:
                self.lines.append(line.rstrip("\n"))
                self._news.put(line)
        self._news.put(None)
