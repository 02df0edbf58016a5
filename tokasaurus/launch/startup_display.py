"""Shows people how start-up proceeds: one repainted line on a terminal, else a line per change."""

import shutil
import threading
from typing import TextIO

from tokasaurus.ipc.messages.to_supervisor import Progress

_BAR_WIDTH = 20
_PLAIN_STEP = 0.25
"""Without a terminal, a phase gets a line at its start and after each such part of it."""
_CLEAR_LINE = "\r\x1b[K"


class StartupDisplay:
    """Prints whole lines (logs) and, until `finish`, the state of start-up. Thread-safe."""

    def __init__(self, stream: TextIO, *, quiet: bool = False) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._quiet = quiet
        self._lock = threading.Lock()
        self._states: dict[str, Progress] = {}
        self._printed: dict[str, tuple[str, int]] = {}
        self._status = ""

    def write_line(self, line: str) -> None:
        """Print a line above the state."""
        with self._lock:
            self._write(line)

    def update(self, progress: Progress) -> None:
        with self._lock:
            self._states[progress.process] = progress
            if self._quiet:
                return
            if self._is_terminal:
                self._paint(self._summary())
            elif self._is_news(progress):
                self._write(_describe(progress))

    def process_ready(self, process: str) -> None:
        """The process has no phases any more."""
        with self._lock:
            self._states.pop(process, None)
            if self._is_terminal and not self._quiet:
                self._paint(self._summary())

    def finish(self) -> None:
        """Take the state off the terminal; from now on only whole lines appear."""
        with self._lock:
            self._states.clear()
            self._paint("")

    def _summary(self) -> str:
        """Those that work before those that wait: what does not fit the line is cut off."""
        states = sorted(self._states.values(), key=lambda state: state.fraction is None)
        return " · ".join(map(_describe, states))

    def _is_news(self, progress: Progress) -> bool:
        mark = (progress.phase, int((progress.fraction or 0.0) / _PLAIN_STEP))
        if self._printed.get(progress.process) == mark:
            return False
        self._printed[progress.process] = mark
        return True

    def _write(self, line: str) -> None:
        status, self._status = self._status, ""
        clear = _CLEAR_LINE if status else ""
        self._put(f"{clear}{line}\n")
        self._paint(status)

    def _paint(self, status: str) -> None:
        if status != self._status:
            columns = shutil.get_terminal_size().columns - 1
            self._put(f"{_CLEAR_LINE}{status[:columns]}")
            self._status = status

    def _put(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            pass  # the terminal is gone; the engine goes on


def _describe(progress: Progress) -> str:
    words = [progress.process, progress.phase]
    if progress.fraction is not None:
        done = min(max(progress.fraction, 0.0), 1.0)
        filled = round(done * _BAR_WIDTH)
        words.append(f"[{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] {done:4.0%}")
    if progress.text:
        words.append(progress.text)
    return " ".join(words)
