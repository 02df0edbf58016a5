"""What a worker shares with the others of its replica."""

from dataclasses import dataclass

from tokasaurus.model.divided_tokens import TokenDivision
from tokasaurus.model.parallel import ALONE, ParallelContext
from tokasaurus.worker.stage_exchange import StageLinks


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """A worker's place and its ways to the others; by default it is alone."""

    parallel: ParallelContext = ALONE
    links: StageLinks | None = None
    """To the other stages of the pipeline, if there are any."""
    division: TokenDivision | None = None
    """Which steps divide their tokens between the tensor-parallel ranks; None: no step does."""


ALONE_REPLICA = Replica()
