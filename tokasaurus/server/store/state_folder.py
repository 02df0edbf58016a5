"""The state directory: where it is, what lies where in it, and the lock of the one who uses it."""

import fcntl
import os
from pathlib import Path

from tokasaurus.errors import ConfigError

_PARTS = ("files", "uploads", "batches")


def default_state_dir() -> Path:
    """As the XDG base directory specification has it."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "tokasaurus"


class StateFolder:
    """One engine at a time uses it; nothing is made before `open`."""

    def __init__(self, path: Path, *, is_guest: bool = False) -> None:
        """`is_guest`: another server of the engine has opened it, and keeps it open longer."""
        self.path = path
        self._is_guest = is_guest
        self._lock: int | None = None

    @property
    def database(self) -> Path:
        return self.path / "state.sqlite3"

    def file(self, file_id: str) -> Path:
        """The content of a file that the database knows."""
        return self.path / "files" / file_id

    def upload(self, file_id: str) -> Path:
        """Content that is still arriving."""
        return self.path / "uploads" / file_id

    def results(self, batch_id: str) -> Path:
        """Answers of a batch that runs."""
        return self.path / "batches" / f"{batch_id}.output.jsonl"

    def failures(self, batch_id: str) -> Path:
        """What failed of a batch that runs."""
        return self.path / "batches" / f"{batch_id}.errors.jsonl"

    def open(self) -> None:
        """Raises ConfigError if it can't be had: not writable, or in use by another engine."""
        if self._is_guest:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for folder in (self.path, *(self.path / part for part in _PARTS)):
                folder.mkdir(exist_ok=True, mode=0o700)
            lock = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"The state directory {str(self.path)!r} can't be used ({error.strerror}); choose "
                "another with state_dir=..."
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise ConfigError(
                f"The state directory {str(self.path)!r} is in use by another server; start this "
                "one with state_dir=... to give it its own."
            ) from error
        self._lock = lock
        for leftover in (self.path / "uploads").iterdir():
            leftover.unlink()

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
