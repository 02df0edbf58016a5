"""Which processes an engine consists of: a pure function of its options."""

from typing import Literal

import msgspec

from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.ipc.addresses import Addresses

SERVER_NAME = "server0"
"""The server of an engine, or the first of several, in `Ready` and in logs."""

Role = Literal["server", "manager", "worker"]


class ProcessSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One process of the engine: what it runs, as whom."""

    name: str
    """Its name in logs and in messages to the supervisor."""
    role: Role
    server_index: int = 0
    num_managers: int = 1
    dp_rank: int = 0
    rank: int = 0
    """A worker's index among the pp x tp workers of its replica."""
    num_workers: int = 1
    """Workers of a manager's or a worker's replica."""

    @property
    def is_stopped_by_manager(self) -> bool:
        """Workers that compute together end after the same step, which their manager knows."""
        return self.role == "worker" and self.num_workers > 1

    @property
    def says_ready(self) -> bool:
        """Workers are ready to their manager, the others to the supervisor."""
        return self.role != "worker"

    def inbox(self, addresses: Addresses) -> str:
        """Address of the process's inbox."""
        match self.role:
            case "server":
                return addresses.server(self.server_index)
            case "manager":
                return addresses.manager(self.dp_rank)
            case "worker":
                return addresses.worker(self.dp_rank, self.rank)


def build_topology(config: EngineConfig, *, with_server: bool) -> list[ProcessSpec]:
    """The engine's processes in the order they are started: the slowest to become ready first.

    Without a server, the caller is the front end and takes server 0's inbox.
    """
    num_workers = config.pp_size * config.tp_size
    specs = [
        ProcessSpec(
            name=f"worker{dp_rank}.{rank}",
            role="worker",
            dp_rank=dp_rank,
            rank=rank,
            num_workers=num_workers,
        )
        for dp_rank in range(config.dp_size)
        for rank in range(num_workers)
    ]
    specs += [
        ProcessSpec(
            name=f"manager{dp_rank}", role="manager", dp_rank=dp_rank, num_workers=num_workers
        )
        for dp_rank in range(config.dp_size)
    ]
    if with_server:
        specs += [
            ProcessSpec(
                name=f"server{index}",
                role="server",
                server_index=index,
                num_managers=config.dp_size,
            )
            for index in range(config.server_workers)
        ]
    return specs
