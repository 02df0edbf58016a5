"""Ranks as threads of one process, over gloo: for tests of what the ranks of a model exchange."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from tokasaurus.model.parallel import RankGroup

T = TypeVar("T")
TIMEOUT_SECONDS = 60


def make_group(store: dist.Store, name: str, rank: int, size: int) -> RankGroup:
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timedelta(seconds=TIMEOUT_SECONDS)
    options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    group = dist.ProcessGroupGloo(dist.PrefixStore(name, store), rank, size, options)
    return RankGroup(rank, size, group)


def on_ranks(size: int, run: Callable[[RankGroup], T]) -> list[T]:
    """What each of `size` ranks returns, by rank."""
    store = dist.HashStore()

    def start(rank: int) -> T:
        return run(make_group(store, "test", rank, size))

    with ThreadPoolExecutor(size) as threads:
        return [future.result() for future in [threads.submit(start, r) for r in range(size)]]
