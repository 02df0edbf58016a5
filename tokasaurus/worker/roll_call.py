"""Which worker hangs, when others have waited for it in vain: the one that does not say that it
waits, too."""

import time
from dataclasses import dataclass

from torch import distributed as dist

from tokasaurus.model.parallel import PeerLostError

_ANSWER_SECONDS = 2.0
"""Those who wait for the same worker give up at about the same time. What ended a worker reaches
the supervisor meanwhile, too, and explains more than its peers could."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RollCall:
    """Held among the workers of one replica that have given up."""

    store: dist.Store
    dp_rank: int
    rank: int

    def explain(self, error: PeerLostError) -> PeerLostError:
        """Takes seconds. The error, naming those of its peers that are silent, if there are any."""
        self.store.set(_key(self.rank), "")
        time.sleep(_ANSWER_SECONDS)
        silent = [
            f"worker{self.dp_rank}.{peer}"
            for peer in error.peers
            if peer != self.rank and not self.store.check([_key(peer)])
        ]
        if not silent:
            return error
        names, verb = " and ".join(silent), "hangs" if len(silent) == 1 else "hang"
        return PeerLostError(
            f"{names} {verb} or ended: the others waited for step_timeout_seconds. ({error})"
        )


def _key(rank: int) -> str:
    return f"gave-up-{rank}"
