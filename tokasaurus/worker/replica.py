"""What a worker shares with the others of its replica."""

from dataclasses import dataclass
from datetime import timedelta

from tokasaurus.model.divided_tokens import TokenDivision
from tokasaurus.model.parallel import ALONE, ParallelContext
from tokasaurus.worker.roll_call import RollCall
from tokasaurus.worker.stage_exchange import StageLinks


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """A worker's place and its ways to the others; by default it is alone."""

    parallel: ParallelContext = ALONE
    links: StageLinks | None = None
    """To the other stages of the pipeline, if there are any."""
    division: TokenDivision | None = None
    """Which steps divide their tokens between the tensor-parallel ranks; None: no step does."""
    roll_call: RollCall | None = None

    def limit_waits(self, seconds: float) -> None:
        """From now on, a wait for another worker fails after so long."""
        groups = [self.parallel.tp.process_group, self.parallel.replica.process_group]
        if self.links is not None:
            groups += [self.links.hidden, self.links.tokens]
        for group in groups:
            if group is not None:
                group._set_default_timeout(timedelta(seconds=seconds))


ALONE_REPLICA = Replica()
