"""The workers of one replica as threads of one process, each with its own runner, over gloo."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from tests.rank_threads import make_group
from tokasaurus.ipc.messages.to_manager import StepOutput
from tokasaurus.ipc.messages.to_worker import StepInput
from tokasaurus.model.divided_tokens import SeparateProducts, TokenDivision
from tokasaurus.model.parallel import ParallelContext, RankGroup
from tokasaurus.worker.replica import Replica
from tokasaurus.worker.runner import GoesOn, always
from tokasaurus.worker.stage_exchange import StageLinks
from tokasaurus.worker.torch_runner import TorchRunner

MakeRunner = Callable[[Replica], TorchRunner]


@dataclass
class ReplicaHandle:
    """A step that all ranks have been told to run."""

    outputs: list["Future[StepOutput]"]

    def result(self) -> StepOutput:
        return [output.result(timeout=120) for output in self.outputs][-1]


class ThreadedReplica:
    """A `ModelRunner` whose steps run on pp x tp ranks; ranks run ahead of each other as they do
    when they are processes."""

    def __init__(
        self,
        pp_size: int,
        tp_size: int,
        make_runner: MakeRunner,
        *,
        division_threshold: int | None = None,
    ) -> None:
        self._division_threshold = division_threshold
        self.pp_size, self.tp_size = pp_size, tp_size
        size = pp_size * tp_size
        self._store = dist.HashStore()
        self._threads = [ThreadPoolExecutor(1) for _ in range(size)]
        self.runners: list[TorchRunner] = self._on_all(lambda rank: self._make(rank, make_runner))
        self.answering = self.runners[(pp_size - 1) * tp_size]

    def _on_all(self, run: Callable[[int], Any]) -> list[Any]:
        futures = [thread.submit(run, rank) for rank, thread in enumerate(self._threads)]
        return [future.result(timeout=120) for future in futures]

    def _make(self, rank: int, make_runner: MakeRunner) -> TorchRunner:
        pp_rank, tp_rank = divmod(rank, self.tp_size)
        context = ParallelContext(
            tp=self._group(f"tp{pp_rank}", tp_rank, self.tp_size),
            replica=self._group("replica", rank, self.pp_size * self.tp_size),
            pp_rank=pp_rank,
            pp_size=self.pp_size,
        )
        links = None
        if self.pp_size > 1:
            links = StageLinks(
                stage=pp_rank,
                num_stages=self.pp_size,
                hidden=self._group(f"hidden{tp_rank}", pp_rank, self.pp_size).process_group,
                tokens=self._group(f"tokens{tp_rank}", pp_rank, self.pp_size).process_group,
                members=tuple(range(tp_rank, self.pp_size * self.tp_size, self.tp_size)),
            )
        division = None
        if self._division_threshold is not None:
            division = TokenDivision(
                threshold=self._division_threshold,
                group=context.tp,
                products=SeparateProducts(context.tp),
            )
        return make_runner(Replica(parallel=context, links=links, division=division))

    def _group(self, name: str, rank: int, size: int) -> RankGroup:
        return RankGroup() if size == 1 else make_group(self._store, name, rank, size)

    def load(self, progress: Any) -> None:
        self._on_all(lambda rank: self.runners[rank].load(progress))

    def warm_up(self, progress: Any) -> None:
        self._on_all(lambda rank: self.runners[rank].warm_up(progress))

    def execute(self, step: StepInput, goes_on: GoesOn = always) -> ReplicaHandle:
        outputs = [
            thread.submit(lambda runner=runner: runner.execute(step, goes_on).result())
            for thread, runner in zip(self._threads, self.runners, strict=True)
        ]
        last = (self.pp_size - 1) * self.tp_size
        return ReplicaHandle([*outputs[:last], *outputs[last + 1 :], outputs[last]])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.answering, name)

    def close(self) -> None:
        for thread in self._threads:
            thread.shutdown()
