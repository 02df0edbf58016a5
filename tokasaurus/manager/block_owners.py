"""Whose blocks are whose in a forecast: a block of the prefix tree counts for its last holder."""

import numpy as np

from tokasaurus.manager.ragged import ragged_places

_ROWS = 2**32
"""More than a forecast has."""
_NONE = np.empty(0, np.int64)


class BlockOwners:
    """Per block of the prefix tree, the row of the forecast's sequence that owns it.

    Counts of references never grow along a table, so what a sequence shares with others is the head
    of its table. Only heads are written down; the rest of a row is its own.
    """

    def __init__(self, ref_counts: np.ndarray) -> None:
        """`ref_counts` int32[num_blocks]: sequences that hold each block; only read here."""
        self._ref_counts = ref_counts
        self._owners = np.zeros(ref_counts.size, np.int64)
        self._first = 1
        """What stands for row 0; anything lower is out of date, so that nothing is ever cleared."""
        self._block_table = np.empty((0, 0), np.int32)
        self._slots = self._num_tree_blocks = _NONE
        self._hints = _NONE
        """By slot, how many blocks were shared the last time."""

    def assign(
        self,
        block_table: np.ndarray,
        slots: np.ndarray,
        num_tree_blocks: np.ndarray,
        ends: np.ndarray,
    ) -> np.ndarray:
        """Forget all owners and give each block to a row that holds it longest; how many each got.

        A row's blocks are the first `num_tree_blocks` (int64[N]) of the block table int32[S, W] at
        its slot, intp[N], which must not change as long as these owners are asked about; the row
        ends at `ends`, int64[N]. The rows are all that hold blocks.
        """
        self._first += _ROWS
        self._block_table, self._slots = block_table, slots
        self._num_tree_blocks = num_tree_blocks
        num_shared = self._num_shared()
        order = np.argsort(ends, kind="stable")
        counts = num_shared[order]
        places = ragged_places(slots[order] * block_table.shape[1], counts)
        blocks = block_table.reshape(-1)[places]
        rows = np.repeat(order, counts)
        marks = rows + self._first
        self._owners[blocks] = marks  # of rows with the same block, the last one stays
        num_owned = np.bincount(rows[self._owners[blocks] == marks], minlength=order.size)
        return num_owned + (num_tree_blocks - num_shared)

    def rows(self, path: np.ndarray) -> np.ndarray:
        """int64[N]: the owner's row of each block of a path from a root; -1: nobody's."""
        owners = np.maximum(self._owners[path] - self._first, -1)
        is_open = owners < 0
        if not is_open.any():
            return owners
        # These have one holder, if any: who holds a block holds all before it.
        depth = int(is_open.argmax())
        if not self._ref_counts[path[depth]]:
            return owners
        is_holder = self._block_table[self._slots, depth] == path[depth]
        for row in np.flatnonzero(is_holder & (self._num_tree_blocks > depth)).tolist():
            table = self._block_table[self._slots[row], : self._num_tree_blocks[row]]
            num_blocks = min(table.size, path.size)
            is_its = is_open[:num_blocks] & (table[:num_blocks] == path[:num_blocks])
            owners[:num_blocks][is_its] = row
        return owners

    def give(self, blocks: np.ndarray, rows: np.ndarray | int) -> None:
        """Set the owners of these blocks; -1: nobody."""
        self._owners[blocks] = rows + self._first

    def _num_shared(self) -> np.ndarray:
        """int64[N]: how many blocks at the head of each row others hold as well.

        Mostly as many as the last time; else they are found by bisection.
        """
        if self._hints.size != self._block_table.shape[0]:
            self._hints = np.zeros(self._block_table.shape[0], np.int64)
        table, num_tree_blocks = self._block_table.reshape(-1), self._num_tree_blocks
        bases = self._slots * self._block_table.shape[1]
        counts = np.minimum(self._hints[self._slots], num_tree_blocks)
        last = table[bases + np.maximum(counts - 1, 0)]
        behind = table[np.minimum(bases + counts, table.size - 1)]
        is_right = (counts == num_tree_blocks) | (self._ref_counts[behind] <= 1)
        is_right &= (counts == 0) | (self._ref_counts[last] > 1)
        if not is_right.all():
            wrong = np.flatnonzero(~is_right)
            counts[wrong] = self._bisect(bases[wrong], num_tree_blocks[wrong])
            self._hints[self._slots] = counts
        return counts

    def _bisect(self, bases: np.ndarray, num_tree_blocks: np.ndarray) -> np.ndarray:
        """The same for rows that begin at these places of the table."""
        table = self._block_table.reshape(-1)
        low, high = np.zeros_like(num_tree_blocks), num_tree_blocks
        while (is_open := low < high).any():
            middle = (low + high) >> 1
            blocks = table[np.minimum(bases + middle, table.size - 1)]
            is_shared = (self._ref_counts[blocks] > 1) & is_open
            low = np.where(is_shared, middle + 1, low)
            high = np.where(is_shared, high, middle)
        return low
