"""How a model's layers are spread over workers, and the few collectives that layers need.

A worker alone is the default: every function is then the identity and costs nothing. Errors of the
network are told apart from our own, because their cause is another worker.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import distributed as dist

from tokasaurus.errors import ProcessFailedError
from tokasaurus.model.collective_operator import AllReduceOperator


class PeerLostError(ProcessFailedError):
    """Another worker of the replica has ended or does not answer."""

    def __init__(self, message: str, peers: tuple[int, ...] = ()) -> None:
        """`peers`: ranks in the replica, one of which is meant."""
        super().__init__(message)
        self.peers = peers


@dataclass(frozen=True, slots=True, weakref_slot=True)
class RankGroup:
    """Workers that exchange tensors. All of them call the same functions in the same order.

    `process_group` is a torch.distributed.ProcessGroup (None: alone), held here and not as torch's
    global default, so that several can live in one process.
    """

    rank: int = 0
    size: int = 1
    process_group: Any = None
    members: tuple[int, ...] = ()
    """Their ranks in the replica, which errors name."""
    _operator: AllReduceOperator | None = field(init=False, default=None, compare=False)
    """`all_reduce` in compiled code."""

    def __post_init__(self) -> None:
        if self.process_group is None:
            return
        # Torch keeps what an operator calls, where no garbage collection looks.
        this = weakref.ref(self)

        def run(x: torch.Tensor) -> None:
            group = this()
            assert group is not None, "the operator belongs to the group"
            group._sum(x)

        object.__setattr__(self, "_operator", AllReduceOperator(run))

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, computed in place: the same bits on all of them."""
        if self.size == 1:
            return x
        if torch.compiler.is_compiling():
            assert self._operator is not None, "ranks without a process group"
            self._operator(x)
        else:
            self._sum(x)
        return x

    def reduce_scatter(self, x: torch.Tensor) -> torch.Tensor:
        """This rank's part of the sum over the ranks; the rows of `x` divide by their number."""
        if self.size == 1:
            return x
        mine = x.new_empty(len(x) // self.size, *x.shape[1:])
        self._run(lambda group: group._reduce_scatter_base(mine, x.contiguous()))
        return mine

    def all_reduce_max(self, x: torch.Tensor) -> torch.Tensor:
        """The elementwise maximum over the ranks, in place; `x` holds no NaN."""
        if self.size > 1:
            options = dist.AllreduceOptions()
            options.reduceOp = dist.ReduceOp(dist.ReduceOp.MAX)
            self._run(lambda group: group.allreduce([x], options))
        return x

    def all_reduce_min(self, x: torch.Tensor) -> torch.Tensor:
        """The elementwise minimum over the ranks, in place; `x` holds no NaN."""
        if self.size > 1:
            options = dist.AllreduceOptions()
            options.reduceOp = dist.ReduceOp(dist.ReduceOp.MIN)
            self._run(lambda group: group.allreduce([x], options))
        return x

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's `x`, which have one shape, by rank."""
        if self.size == 1:
            return [x]
        gathered = [torch.empty_like(x) for _ in range(self.size)]
        self._run(lambda group: group.allgather([gathered], [x.contiguous()]))
        return gathered

    def gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's `x`, which have one shape, on rank 0; an empty list on the others."""
        if self.size == 1:
            return [x]
        gathered = [torch.empty_like(x) for _ in range(self.size)] if self.rank == 0 else []
        options = dist.GatherOptions()
        options.rootRank = 0
        outputs = [gathered] if gathered else []
        self._run(lambda group: group.gather(outputs, [x.contiguous()], options))
        return gathered

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        """Rank 0's `x`, written over those of the others."""
        if self.size > 1:
            options = dist.BroadcastOptions()
            options.rootRank, options.rootTensor = 0, 0
            self._run(lambda group: group.broadcast([x], options))
        return x

    def _sum(self, x: torch.Tensor) -> None:
        self._run(lambda group: group.allreduce([x]))

    def _run(self, start: Callable[[Any], Any]) -> None:
        try:
            start(self.process_group).wait()
        except RuntimeError as error:
            raise peer_lost(error, self.members) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelContext:
    """Where a worker stands among the pp x tp workers of its replica.

    Layers shard themselves over `tp`: the workers that hold the same decoder layers. The stages of
    the pipeline hold consecutive decoder layers.
    """

    tp: RankGroup = field(default_factory=RankGroup)
    replica: RankGroup = field(default_factory=RankGroup)
    """All of them; rank pp_rank * tp_size + tp_rank."""
    pp_rank: int = 0
    pp_size: int = 1

    @property
    def rank(self) -> int:
        return self.replica.rank

    @property
    def tp_rank(self) -> int:
        return self.tp.rank

    @property
    def tp_size(self) -> int:
        return self.tp.size

    @property
    def is_first_stage(self) -> bool:
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pp_rank == self.pp_size - 1

    @property
    def is_alone(self) -> bool:
        return self.tp_size == 1 and self.pp_size == 1

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over the tensor-parallel ranks, computed in place."""
        return self.tp.all_reduce(x)


ALONE = ParallelContext()


def peer_lost(error: RuntimeError, peers: tuple[int, ...]) -> PeerLostError:
    """What an error of a process group means, in an exchange with these ranks of the replica."""
    reason = str(error).strip().splitlines() or ["no reason given"]
    message = f"Another worker of this replica has ended or hangs: {reason[-1]}"
    return PeerLostError(message, peers)
