"""Whose blocks are whose in a forecast: a block of the prefix tree counts for its last holder."""

import numpy as np

_ROWS = 2**32
"""More than a forecast has."""


class BlockOwners:
    """Per block, the row of the forecast's sequence that owns it."""

    def __init__(self, num_blocks: int) -> None:
        self._owners = np.zeros(num_blocks, np.int64)
        self._first = 1
        """What stands for row 0; anything lower is out of date, so that nothing is ever cleared."""

    def assign(
        self, tables: np.ndarray, num_tree_blocks: np.ndarray, ends: np.ndarray
    ) -> np.ndarray:
        """Forget all owners and give each block to a row that holds it longest; how many each got.

        tables int32[N, W]: block ids, of which the first `num_tree_blocks` of a row count.
        """
        self._first += _ROWS
        if not tables.size:
            return np.zeros(ends.size, np.int64)
        order = np.argsort(ends, kind="stable")
        counts = num_tree_blocks[order]
        blocks = tables[order][np.arange(tables.shape[1]) < counts[:, None]]
        rows = np.repeat(order, counts)
        marks = rows + self._first
        self._owners[blocks] = marks  # of rows with the same block, the last one stays
        return np.bincount(rows[self._owners[blocks] == marks], minlength=order.size)

    def rows(self, blocks: np.ndarray) -> np.ndarray:
        """int64[N]: the owner's row of each of these blocks; -1: nobody's."""
        return np.maximum(self._owners[blocks] - self._first, -1)

    def give(self, blocks: np.ndarray, rows: np.ndarray | int) -> None:
        """Set the owners of these blocks; -1: nobody."""
        self._owners[blocks] = rows + self._first
