"""Where each process of one engine listens: sockets in a private directory."""

import shutil
import tempfile
from pathlib import Path

import msgspec


class Addresses(msgspec.Struct, frozen=True):
    """Inbox addresses below one directory that only this user can enter (mode 0700).

    Every process binds its own inbox and connects to those of its peers.
    """

    directory: str

    @classmethod
    def create(cls) -> "Addresses":
        """Make a fresh directory; short, because a Unix socket path holds about 100 bytes."""
        return cls(tempfile.mkdtemp(prefix="toka-"))

    def remove(self) -> None:
        """Delete the directory and the sockets in it."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def supervisor(self) -> str:
        return self._ipc("supervisor")

    def server(self, server_index: int) -> str:
        return self._ipc(f"server{server_index}")

    def manager(self, dp_rank: int) -> str:
        return self._ipc(f"manager{dp_rank}")

    def worker(self, dp_rank: int, rank: int) -> str:
        """Inbox of worker `rank` (its index among the pp x tp workers of the replica)."""
        return self._ipc(f"worker{dp_rank}.{rank}")

    def rendezvous(self, dp_rank: int) -> str:
        """Path of the file through which the workers of a replica find each other."""
        return str(Path(self.directory) / f"replica{dp_rank}.rendezvous")

    def _ipc(self, name: str) -> str:
        return f"ipc://{Path(self.directory) / name}"
