"""Brings the workers of a replica together: process groups over gloo on CPUs, over NCCL on GPUs.

They find each other through a file in the engine's private socket directory; no port is fixed.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist

from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.errors import ProcessFailedError
from tokasaurus.ipc.addresses import Addresses
from tokasaurus.model.divided_tokens import TokenDivision
from tokasaurus.model.parallel import ParallelContext, RankGroup
from tokasaurus.worker.replica import ALONE_REPLICA, Replica
from tokasaurus.worker.roll_call import RollCall
from tokasaurus.worker.stage_exchange import StageLinks

_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class ReplicaRank:
    """A worker's place in its replica: stage by stage, and within a stage shard by shard."""

    pp_rank: int
    tp_rank: int

    @classmethod
    def of(cls, rank: int, config: EngineConfig) -> "ReplicaRank":
        return cls(*divmod(rank, config.tp_size))


def join_replica(
    config: EngineConfig, addresses: Addresses, dp_rank: int, rank: int, device: torch.device
) -> Replica:
    """Wait for the other workers of the replica; at once for one that is alone.

    Raises ProcessFailedError when they don't come within `ready_timeout_seconds`, and ConfigError
    where the device can't do what the options ask.
    """
    pp_size, tp_size = config.pp_size, config.tp_size
    if pp_size * tp_size == 1:
        return ALONE_REPLICA
    place = ReplicaRank.of(rank, config)
    timeout = timedelta(seconds=config.ready_timeout_seconds)
    store = dist.FileStore(addresses.rendezvous(dp_rank), pp_size * tp_size)
    store.set_timeout(timeout)
    groups = _GroupFactory(store, device, timeout)
    try:
        replica = groups.make("replica", rank, tuple(range(pp_size * tp_size)))
        tp = replica
        links = None
        if pp_size > 1:
            first = place.pp_rank * tp_size
            shards = tuple(range(first, first + tp_size))
            stages = tuple(range(place.tp_rank, pp_size * tp_size, tp_size))
            tp = groups.make(f"tp{place.pp_rank}", place.tp_rank, shards)
            links = StageLinks(
                stage=place.pp_rank,
                num_stages=pp_size,
                hidden=groups.make(f"hidden{place.tp_rank}", place.pp_rank, stages).process_group,
                tokens=groups.make(f"tokens{place.tp_rank}", place.pp_rank, stages).process_group,
                members=stages,
            )
    except RuntimeError as error:
        raise ProcessFailedError(
            f"The workers of replica {dp_rank} did not find each other within "
            f"{config.ready_timeout_seconds:g} seconds: {error}"
        ) from error
    division = None
    if config.async_tp_threshold is not None:
        # Imported here as it loads parts of torch that hardly any worker needs.
        from tokasaurus.worker.symmetric_memory import fused_products

        name = f"tp{place.pp_rank}"
        products = fused_products(tp, dist.PrefixStore(f"memory-{name}", store), name, device)
        division = TokenDivision(threshold=config.async_tp_threshold, group=tp, products=products)
    context = ParallelContext(tp=tp, replica=replica, pp_rank=place.pp_rank, pp_size=pp_size)
    roll_call = RollCall(store=store, dp_rank=dp_rank, rank=rank)
    return Replica(parallel=context, links=links, division=division, roll_call=roll_call)


@dataclass(frozen=True, slots=True)
class _GroupFactory:
    store: dist.Store
    device: torch.device
    timeout: timedelta

    def make(self, name: str, rank: int, members: tuple[int, ...]) -> RankGroup:
        size = len(members)
        if size == 1:
            return RankGroup()
        store = dist.PrefixStore(name, self.store)
        group: Any
        if self.device.type == "cuda":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = self.timeout
            group = dist.ProcessGroupNCCL(store, rank, size, options)
        else:
            options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
            options._timeout = self.timeout
            options._devices = [dist.ProcessGroupGloo.create_device(hostname=_LOOPBACK)]
            group = dist.ProcessGroupGloo(store, rank, size, options)
        return RankGroup(rank, size, group, members)
