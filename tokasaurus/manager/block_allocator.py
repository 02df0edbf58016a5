"""Hands out KV blocks: free ones first, then the least recently used of the unreferenced cached.

Every block is free, private (in one sequence's table), or a node of the prefix tree; a node is
referenced by the sequences that have it in their tables, or only cached.
"""

import numpy as np

from tokasaurus.manager.prefix_tree import PrefixTree


class BlockAllocator:
    """Owns blocks 0..num_blocks-1 and their reference counts."""

    def __init__(self, num_blocks: int, page_size: int) -> None:
        self.num_blocks = num_blocks
        self.page_size = page_size
        self.ref_counts = np.zeros(num_blocks, np.int32)
        """Sequences that have the block in their table."""
        self.is_scheduled = np.zeros(num_blocks, bool)
        """A chunk that fills the block is scheduled, or was: whoever comes later may read it."""
        self._follow_none = np.zeros(num_blocks, bool)
        self.tree = PrefixTree(num_blocks, page_size, self.ref_counts)
        self._free = np.arange(num_blocks - 1, -1, -1, dtype=np.int32)
        """Stack; the top stands at `_num_free - 1`."""
        self._num_free = num_blocks
        self._num_cached = 0

    @property
    def num_free(self) -> int:
        return self._num_free

    @property
    def num_cached(self) -> int:
        """Nodes that no sequence references."""
        return self._num_cached

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` could hand out now."""
        return self._num_free + self._num_cached

    @property
    def num_in_use(self) -> int:
        return self.num_blocks - self.num_available

    def allocate(self, num_blocks: int) -> np.ndarray:
        """Return int32[num_blocks] private blocks, referenced once; they must be available."""
        assert num_blocks <= self.num_available, f"{num_blocks} of {self.num_available} blocks"
        if num_blocks > self._num_free:
            evicted = self.tree.evict(num_blocks - self._num_free)
            self._num_cached -= evicted.size
            self._push_free(evicted)
        self._num_free -= num_blocks
        blocks = self._free[self._num_free : self._num_free + num_blocks].copy()
        self.ref_counts[blocks] = 1
        self.is_scheduled[blocks] = False
        return blocks

    def num_cached_along(self, path: np.ndarray) -> int:
        """How many nodes of this path from a root no sequence references: those at its end."""
        if not path.size or self.ref_counts[path[-1]]:
            return 0
        return int(np.count_nonzero(self.ref_counts[path] == 0))

    def give_back(self, blocks: np.ndarray) -> None:
        """Free private blocks that nothing was done with."""
        if blocks.size:
            self.ref_counts[blocks] = 0
            self._push_free(blocks)

    def acquire(self, path: np.ndarray, num_holders: int = 1) -> None:
        """Reference a path of the tree from a root, or the rest of one that is referenced."""
        if path.size:
            self._num_cached -= self.num_cached_along(path)
            self.ref_counts[path] += num_holders

    def share(
        self, parent: int | str, token_bytes: bytes, blocks: np.ndarray, *, are_computed: bool
    ) -> np.ndarray:
        """Insert full blocks of one table below `parent`; return the path that now holds them.

        Where the tree has the same content already, its own node stands in the path and ours stays
        private. Blocks that are not computed yet stop at the first such node, and computed ones at
        one that isn't, so that a scheduled node never has an unscheduled ancestor.
        """
        may_follow = self.is_scheduled if are_computed else self._follow_none
        path = self.tree.graft(parent, token_bytes, blocks, may_follow)
        if are_computed:
            self.is_scheduled[path] = True
        return path

    def release(self, blocks: np.ndarray, path: np.ndarray) -> None:
        """Drop one table's references; `path` are the tree nodes that hold its content.

        Nodes that were never scheduled and that nobody else waits for leave the tree.
        """
        ref_counts = self.ref_counts[blocks] - 1
        self.ref_counts[blocks] = ref_counts
        unreferenced = blocks[ref_counts == 0]
        is_node = self.tree.is_node(unreferenced)
        is_kept = is_node & self.is_scheduled[unreferenced]
        self._num_cached += int(np.count_nonzero(is_kept))
        self.tree.touch(path)
        self.tree.prune(unreferenced[is_node & ~is_kept])
        self._push_free(unreferenced[~is_kept][::-1])
        if path.size and self.tree.is_node(path[-1]):
            self.tree.offer(path.item(-1))

    def discard(self, path: np.ndarray) -> None:
        """Forget what is cached at the end of `path` and nobody references."""
        for block in path[self.tree.is_node(path)][::-1].tolist():
            if self.ref_counts[block] or not self.tree.is_leaf(block):
                return
            gone = np.array([block], np.int32)
            self.tree.prune(gone)
            self._push_free(gone)
            self._num_cached -= 1

    def _push_free(self, blocks: np.ndarray) -> None:
        self._free[self._num_free : self._num_free + blocks.size] = blocks
        self._num_free += blocks.size

    def check_invariants(self) -> None:
        self.tree.check_invariants()
        is_node = self.tree.is_node(np.arange(self.num_blocks))
        free = self._free[: self._num_free]
        assert np.unique(free).size == free.size, "a block is free twice"
        assert not self.ref_counts[free].any(), "a free block is referenced"
        assert not is_node[free].any(), "a free block is in the tree"
        assert (self.ref_counts >= 0).all()
        cached = is_node & (self.ref_counts == 0)
        assert int(np.count_nonzero(cached)) == self._num_cached
        assert self.is_scheduled[cached].all(), "an unreferenced node was never computed"
        is_private = ~is_node & (self.ref_counts > 0)
        assert (self.ref_counts[is_private] == 1).all(), "a private block is shared"
        num_used = int(np.count_nonzero(self.ref_counts > 0))
        assert self._num_free + self._num_cached + num_used == self.num_blocks, "a block is lost"
        for segment in self.tree.segments():
            is_scheduled = self.is_scheduled[segment]
            assert (is_scheduled[1:] <= is_scheduled[:-1]).all(), f"{segment}: computed below only"
