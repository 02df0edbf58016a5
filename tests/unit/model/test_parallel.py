"""Collectives of a rank group, alone and among several, and what a lost peer looks like."""

import pytest
import torch

from tests.rank_threads import on_ranks
from tokasaurus.errors import ProcessFailedError
from tokasaurus.model.parallel import ALONE, PeerLostError, RankGroup


def test_alone_everything_is_the_identity() -> None:
    group, x = RankGroup(), torch.randn(3)
    assert ALONE.is_alone
    assert ALONE.is_first_stage
    assert ALONE.is_last_stage
    for result in (
        group.all_reduce(x),
        group.reduce_scatter(x),
        group.all_reduce_max(x),
        group.all_reduce_min(x),
        group.broadcast(x),
        *group.all_gather(x),
        *group.gather(x),
    ):
        assert result is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_ranks_exchange(dtype: torch.dtype) -> None:
    def run(group: RankGroup) -> dict[str, list[float]]:
        mine = torch.tensor([1.0 + group.rank, -group.rank], dtype=dtype)
        return {
            "sum": group.all_reduce(mine.clone()).tolist(),
            "part": group.reduce_scatter(torch.arange(6).view(6, 1).to(dtype)).flatten().tolist(),
            "max": group.all_reduce_max(mine.clone()).tolist(),
            "min": group.all_reduce_min(mine.clone()).tolist(),
            "all": torch.cat(group.all_gather(mine)).tolist(),
            "gathered": [x for part in group.gather(mine) for x in part.tolist()],
            "root": group.broadcast(mine.clone()).tolist(),
        }

    results = on_ranks(3, run)
    everything = [1, 0, 2, -1, 3, -2]
    for rank, result in enumerate(results):
        assert result.pop("part") == [6 * rank, 6 * rank + 3]
        assert result.pop("gathered") == (everything if rank == 0 else [])
        assert result == {
            "sum": [6, -3], "max": [3, 0], "min": [1, -2], "all": everything, "root": [1, 0],
        }  # fmt: skip


def test_a_peer_that_has_gone_is_named_as_the_cause() -> None:
    def run(group: RankGroup) -> None:
        group.all_reduce(torch.ones(1))
        if group.rank == 0:
            with pytest.raises(PeerLostError, match="Another worker of this replica has ended"):
                group.all_reduce(torch.ones(1))

    on_ranks(2, run)
    assert issubclass(PeerLostError, ProcessFailedError)
