"""A child process as its supervisor holds it: start, last words, signals, and how it ended."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

import tokasaurus
from tokasaurus.launch.child import ChildOrders
from tokasaurus.launch.topology import ProcessSpec

_NUM_LAST_LINES = 20
_PACKAGE_ROOT = str(Path(tokasaurus.__file__).parents[1])


class ChildProcess:
    """Starts at construction, in a process group of its own so that Ctrl-C does not reach it.

    What it writes goes line by line to `write_line`; the last lines are kept.
    On Linux the child dies when the thread that constructed this object ends.
    """

    def __init__(
        self,
        orders: ChildOrders,
        environment: Mapping[str, str],
        write_line: Callable[[str], None],
    ) -> None:
        self.spec: ProcessSpec = orders.spec
        self.last_lines: deque[str] = deque(maxlen=_NUM_LAST_LINES)
        self._write_line = write_line
        self._popen = subprocess.Popen(
            # The name is for people who look at the list of processes.
            [sys.executable, "-m", "tokasaurus.launch.child", self.spec.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_child_environment(environment),
            process_group=0,
        )
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once: `describe_end` will tell
            self._popen.stdin.write(msgspec.json.encode(orders) + b"\n")
            self._popen.stdin.flush()
        self._reader = threading.Thread(
            target=self._forward_output, name=f"{self.spec.name}-output", daemon=True
        )
        self._reader.start()

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; minus the signal's number if a signal ended it."""
        return self._popen.poll()

    def terminate(self) -> None:
        self._signal_group(signal.SIGTERM)

    def kill(self) -> None:
        """End it and whatever it started."""
        self._signal_group(signal.SIGKILL)

    def close(self) -> None:
        """Release the pipes of a process that has ended, once its last output is through."""
        assert self.exit_code is not None, f"{self.name} still runs"
        self._reader.join(timeout=1.0)
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died before it read its orders
            self._popen.stdin.close()

    def describe_end(self) -> str:
        """How it ended, in words that name the signal or the exit code, and its last lines."""
        code = self.exit_code
        assert code is not None, f"{self.name} still runs"
        self._reader.join(timeout=0.5)
        if code < 0:
            how = f"was killed by {_signal_name(-code)}"
            if -code == signal.SIGKILL:
                how += " (did the system run out of memory?)"
        else:
            how = f"ended unexpectedly with exit code {code}"
        lines = "".join(f"\n  {line}" for line in self.last_lines)
        return f"{self.name} {how}." + (f" Its last lines:{lines}" if lines else "")

    def _signal_group(self, number: signal.Signals) -> None:
        if self._popen.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ended in between
                os.killpg(self._popen.pid, number)

    def _forward_output(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as output:
            for raw in output:
                line = raw.decode(errors="replace").rstrip()
                self.last_lines.append(line)
                self._write_line(line)


def _child_environment(additions: Mapping[str, str]) -> dict[str, str]:
    environment = {**os.environ, **additions}
    # Output goes through a pipe: progress bars of libraries would be one line per change.
    environment.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    environment.setdefault("TQDM_DISABLE", "1")
    environment["PYTHONUNBUFFERED"] = "1"
    environment["PYTHONSAFEPATH"] = "1"  # a file in the user's folder must not shadow a module
    if not _PACKAGE_ROOT.endswith(("site-packages", "dist-packages")):
        earlier = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{_PACKAGE_ROOT}:{earlier}" if earlier else _PACKAGE_ROOT
    return environment


def _signal_name(number: int) -> str:
    try:
        return f"signal {signal.Signals(number).name}"
    except ValueError:
        return f"signal {number}"
