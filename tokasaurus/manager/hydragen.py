"""Finds decoding sequences that share a long prefix, so that attention reads it once per group.

Groups are runs of rows in the decode order (Juravsky et al., "Hydragen", 2024). They are searched
for every few steps; in between, those that leave only shorten their run, and joiners stay apart.
"""

from itertools import pairwise

import numpy as np

from tokasaurus.ipc.messages.to_worker import HydragenGroup
from tokasaurus.manager.running_set import RunningSet
from tokasaurus.manager.settings import ManagerSettings

_SEARCH_INTERVAL = 8
"""Steps between searches while sequences come and go."""


class GroupFinder:
    """Keeps groups for the current decode order, and the decode order so that groups are runs."""

    def __init__(self, settings: ManagerSettings, running: RunningSet) -> None:
        self._running = running
        self._min_rows = settings.hydragen_min_group_size
        self._min_blocks = -(-settings.hydragen_min_prefix_len // settings.page_size)
        num_slots = running.slots.num_slots
        self._group_of = np.full(num_slots, -1, np.int64)
        self._epoch_of = np.zeros(num_slots, np.int64)
        """A slot is in its group only as long as it has this epoch."""
        self._num_blocks: list[int] = []
        """Shared blocks per group."""
        self._order = running.decode_slots
        self._groups: list[HydragenGroup] = []
        self._num_steps_since = 0
        self._has_changed = False

    def update(self, num_passes: int = 1) -> list[HydragenGroup]:
        """Groups of the decode order as it is after this; to be called once per step."""
        running = self._running
        running.refresh_decode_slots()
        self._num_steps_since += num_passes
        if running.decode_slots is not self._order:
            self._has_changed = True
        if self._has_changed and self._num_steps_since >= _SEARCH_INTERVAL:
            self._search()
            self._has_changed = False
            self._num_steps_since = 0
        elif running.decode_slots is self._order:
            return self._groups
        self._order = running.decode_slots
        self._groups = self._runs()
        return self._groups

    def share(self) -> float:
        """Of the KV tokens that the decodes attend to, those in the prefixes of groups."""
        num_tokens = int(self._running.slots.num_scheduled[self._order].sum())
        num_blocks = sum(group.num_rows * group.num_blocks for group in self._groups)
        return num_blocks * self._running.page_size / max(num_tokens, 1)

    def _search(self) -> None:
        slots = self._running.slots
        decode_slots = self._running.decode_slots
        self._group_of[:] = -1
        self._num_blocks = []
        groups: list[np.ndarray] = []
        can_share = slots.num_tree_blocks[decode_slots] >= max(1, self._min_blocks)
        for members, num_blocks in self._split(decode_slots[can_share], 0)[1]:
            self._group_of[members] = len(groups)
            self._num_blocks.append(num_blocks)
            groups.append(members)
        self._epoch_of[decode_slots] = slots.epochs[decode_slots]
        if groups:
            alone = decode_slots[self._group_of[decode_slots] < 0]
            order = np.concatenate([*groups, alone])
            if not np.array_equal(order, decode_slots):
                self._running.decode_slots = order

    def _split(self, members: np.ndarray, depth: int) -> tuple[int, list[tuple[np.ndarray, int]]]:
        """The grouping of `members`, which share `depth` blocks, that saves most block reads.

        Returns the reads saved and (slots, shared blocks) of each group.
        """
        if members.size < self._min_rows:
            return 0, []
        slots = self._running.slots
        num_tree_blocks = slots.num_tree_blocks[members]
        tables = slots.block_table[members, depth : int(num_tree_blocks.min())]
        is_common = (tables == tables[0]).all(axis=0)
        depth += int(is_common.argmin()) if not is_common.all() else is_common.size
        saved = (members.size - 1) * depth if depth >= self._min_blocks else 0
        groups = [(members, depth)] if saved else []
        longer = members[num_tree_blocks > depth]
        if longer.size < self._min_rows:
            return saved, groups
        next_blocks = slots.block_table[longer, depth]
        order = np.argsort(next_blocks, kind="stable")
        sorted_blocks = next_blocks[order]
        starts = np.flatnonzero(np.append(True, sorted_blocks[1:] != sorted_blocks[:-1]))
        ends = np.append(starts[1:], longer.size)
        is_large = ends - starts >= self._min_rows
        saved_below, groups_below = 0, []
        for start, end in zip(starts[is_large].tolist(), ends[is_large].tolist(), strict=True):
            below = self._split(longer[order[start:end]], depth)
            saved_below += below[0]
            groups_below += below[1]
        if saved_below > saved:
            return saved_below, groups_below
        return saved, groups

    def _runs(self) -> list[HydragenGroup]:
        """Groups that are left of those found, as runs of the current order."""
        decode_slots = self._order
        group_of = self._group_of[decode_slots].copy()
        group_of[self._epoch_of[decode_slots] != self._running.slots.epochs[decode_slots]] = -1
        if not (group_of >= 0).any():
            return []
        edges = np.flatnonzero(group_of[1:] != group_of[:-1]) + 1
        return [
            HydragenGroup(
                first_row=start, num_rows=end - start, num_blocks=self._num_blocks[group_of[start]]
            )
            for start, end in pairwise([0, *edges.tolist(), group_of.size])
            if group_of[start] >= 0 and end - start >= self._min_rows
        ]
