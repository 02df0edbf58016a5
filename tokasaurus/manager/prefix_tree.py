"""Tree of cached KV blocks: a node is a full block, keyed by its parent and its token ids.

Nodes are block ids. A sequence that references a node references its ancestors too, so reference
counts never grow from parent to child, and unreferenced nodes can always be evicted leaf by leaf.
"""

import heapq
import struct

import numpy as np

Key = tuple[int | str, bytes]
"""(parent block, or the salt for a first block; the block's token ids as int32 bytes)."""


class PrefixTree:
    """Finds cached blocks by content and says which unreferenced one was used least recently."""

    def __init__(self, num_blocks: int, page_size: int, ref_counts: np.ndarray) -> None:
        """`ref_counts` int32[num_blocks] belongs to the allocator and is only read here."""
        self.is_node = np.zeros(num_blocks, bool)
        self._stride = 4 * page_size
        self._ref_counts = ref_counts
        self._children: dict[Key, int] = {}
        self._keys: list[Key | None] = [None] * num_blocks
        self._num_children = [0] * num_blocks
        self._last_used = np.zeros(num_blocks, np.int64)
        self._clock = 0
        self._evictable: list[tuple[int, int]] = []
        """Heap of (last use, block) over unreferenced leaves; entries may be out of date."""

    def __len__(self) -> int:
        return len(self._children)

    @property
    def num_heap_entries(self) -> int:
        """Candidates for eviction, those that are out of date included."""
        return len(self._evictable)

    def match(self, salt: str, token_bytes: bytes, max_blocks: int) -> list[int]:
        """Longest path from the root whose nodes hold the first of these tokens."""
        children, stride = self._children, self._stride
        parent: int | str = salt
        path: list[int] = []
        for start in range(0, max_blocks * stride, stride):
            block = children.get((parent, token_bytes[start : start + stride]))
            if block is None:
                break
            path.append(block)
            parent = block
        return path

    def key(self, block: int) -> Key | None:
        """What stands for the node as long as it is in the tree, with all its ancestors: another
        node at the same block has another object."""
        return self._keys[block]

    def graft(
        self, parent: int | str, token_bytes: bytes, blocks: np.ndarray, may_follow: np.ndarray
    ) -> list[int]:
        """Insert a path of blocks below `parent`; return the nodes that now hold the content.

        Where there is a node with the same content, it stands in the path if `may_follow`
        (bool[num_blocks]) says so; otherwise the path ends before it. Below the first block that
        is inserted nothing can be, as it was no node.
        """
        children, stride = self._children, self._stride
        path: list[int] = []
        for start in range(0, blocks.size * stride, stride):
            node = children.get((parent, token_bytes[start : start + stride]))
            if node is None:
                inserted = blocks[len(path) :]
                self._insert(parent, token_bytes[start : blocks.size * stride], inserted.tolist())
                self.is_node[inserted] = True
                return path + inserted.tolist()
            if not may_follow[node]:
                break
            path.append(node)
            parent = node
        return path

    def has_child(self, parent: int | str, token_bytes: bytes, index: int) -> bool:
        """Whether there is a node below `parent` for block `index` of these tokens."""
        start = index * self._stride
        return (parent, token_bytes[start : start + self._stride]) in self._children

    def _insert(self, parent: int | str, token_bytes: bytes, blocks: list[int]) -> None:
        """Insert a path of blocks, none of which is in the tree, and all of whose content is new
        below `parent`."""
        keys, stride, num_children = self._keys, self._stride, self._num_children
        if isinstance(parent, int):
            num_children[parent] += 1
        for block in blocks[:-1]:
            num_children[block] = 1
        contents = struct.unpack(f"{stride}s" * len(blocks), token_bytes)  # faster than slices
        new_keys: list[Key] = list(zip([parent, *blocks[:-1]], contents, strict=True))
        self._children.update(zip(new_keys, blocks, strict=True))
        for block, key in zip(blocks, new_keys, strict=True):
            assert keys[block] is None, f"block {block} is in the tree already"
            keys[block] = key

    def remove(self, block: int) -> None:
        """Take out a leaf."""
        assert self._num_children[block] == 0, f"block {block} has children"
        key = self._keys[block]
        assert key is not None, f"block {block} is not in the tree"
        del self._children[key]
        self._keys[block] = None
        self.is_node[block] = False
        parent = key[0]
        if isinstance(parent, int):
            self._num_children[parent] -= 1
            self.offer(parent)

    def touch(self, path: np.ndarray | list[int]) -> None:
        """These nodes were used now; offer the last of them afterwards."""
        self._clock += 1
        self._last_used[path] = self._clock

    def offer(self, block: int) -> None:
        """Let `block` be evicted if it is an unreferenced leaf."""
        if self._num_children[block] == 0 and self._ref_counts[block] == 0:
            if len(self._evictable) > 2 * len(self._keys) + 64:
                self._evictable = [entry for entry in self._evictable if self._is_current(entry)]
                heapq.heapify(self._evictable)
            heapq.heappush(self._evictable, (int(self._last_used[block]), block))

    def evict(self) -> int:
        """Take out the unreferenced leaf that was used least recently; there must be one."""
        while True:
            entry = heapq.heappop(self._evictable)
            if self._is_current(entry):
                self.remove(entry[1])
                return entry[1]

    def _is_current(self, entry: tuple[int, int]) -> bool:
        last_used, block = entry
        return (
            self._keys[block] is not None
            and self._num_children[block] == 0
            and self._ref_counts[block] == 0
            and self._last_used[block] == last_used
        )

    def is_leaf(self, block: int) -> bool:
        return self._num_children[block] == 0

    def parent(self, block: int) -> int | str:
        """The parent block of a node, or the salt it stands under."""
        key = self._keys[block]
        assert key is not None, f"block {block} is not in the tree"
        return key[0]

    def check_invariants(self) -> None:
        nodes = np.flatnonzero(self.is_node).tolist()
        assert sorted(self._children.values()) == nodes
        num_children = [0] * len(self._keys)
        current = {entry[1] for entry in self._evictable if self._is_current(entry)}
        for block in nodes:
            key = self._keys[block]
            assert key is not None
            assert self._children[key] == block
            assert len(key[1]) == self._stride
            if isinstance(key[0], int):
                assert self.is_node[key[0]], f"parent of {block} is not in the tree"
                assert self._ref_counts[key[0]] >= self._ref_counts[block]
                if self._ref_counts[block] == 0:
                    assert self._last_used[key[0]] >= self._last_used[block]
                num_children[key[0]] += 1
        assert num_children == self._num_children
        for block in nodes:
            is_evictable = num_children[block] == 0 and self._ref_counts[block] == 0
            assert is_evictable == (block in current), f"block {block} is lost to eviction"
