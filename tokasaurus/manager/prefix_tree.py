"""Tree of cached KV blocks: a node is a full block, found by its token ids below its parent.

Nodes are block ids, kept in runs: paths in which every node but the last has one child. A run is
compared, inserted and evicted as a whole; it is split where contents part, and loses its end first.

A sequence that references a node references its ancestors too, so reference counts never grow from
parent to child, and unreferenced nodes can always be evicted leaf by leaf.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

NO_BLOCKS = np.empty(0, np.int32)


@dataclass(slots=True, eq=False)
class Run:
    """Nodes one below the other. A root, which stands for a salt, has none."""

    salt: str = ""
    """Of a root."""
    parent: "Run | None" = None
    blocks: np.ndarray = field(default_factory=lambda: NO_BLOCKS)
    """int32: replaced, never changed in place. Those at the end may go, but none follow, so a node
    keeps its place here until it leaves the tree or the run is split before it."""
    content: bytes = b""
    """Their token ids as int32 bytes, and perhaps those of blocks that are gone from its end."""
    children: "dict[bytes, Run]" = field(default_factory=dict)
    """By the content of their first block; all are below the last block."""


class PrefixTree:
    """Finds cached blocks by content and says which unreferenced ones were used least recently."""

    def __init__(self, num_blocks: int, page_size: int, ref_counts: np.ndarray) -> None:
        """`ref_counts` int32[num_blocks] belongs to the allocator and is only read here."""
        self._page_size = page_size
        self._stride = 4 * page_size
        self._ref_counts = ref_counts
        self._roots: dict[str, Run] = {}
        self._runs: dict[int, Run] = {}
        """By their first block."""
        self._heads = np.full(num_blocks, -1, np.int32)
        """First block of the run that the block is in; -1: it is not in the tree."""
        self._last_used = np.zeros(num_blocks, np.int64)
        self._clock = 0
        self._unsettled: list[Run] = []
        """Those whose blocks have no head yet."""
        self._evictable: list[tuple[int, int]] = []
        """Heap of (last use, block) over unreferenced leaves; entries may be out of date."""

    def __len__(self) -> int:
        return int(np.count_nonzero(self._heads >= 0))

    @property
    def num_runs(self) -> int:
        return len(self._runs)

    @property
    def num_heap_entries(self) -> int:
        """Candidates for eviction, those that are out of date included."""
        return len(self._evictable)

    def is_node(self, blocks: np.ndarray) -> np.ndarray:
        """bool[N]: which of these blocks are in the tree."""
        return self._heads[blocks] >= 0

    def match(self, salt: str, token_bytes: bytes, max_blocks: int) -> np.ndarray:
        """int32: longest path from the root whose nodes hold the first of these tokens."""
        run = self._roots.get(salt)
        if run is None:
            return NO_BLOCKS
        path = []
        depth = 0
        while depth < max_blocks:
            child = run.children.get(self._block_bytes(token_bytes, depth))
            if child is None:
                break
            num_common = self._num_common(child, 0, token_bytes, depth, max_blocks)
            path.append(child.blocks[:num_common])
            depth += num_common
            if num_common < child.blocks.size:
                break
            run = child
        return _joined(path)

    def place(self, block: int) -> tuple[Run, int]:
        """The run that a node is in and its index there: what stands for the node, with all its
        ancestors, as long as the run is so long."""
        run = self._runs[self._heads.item(block)]
        last = run.blocks.size - 1
        if run.blocks.item(last) == block:
            return run, last
        return run, int((run.blocks == block).argmax())

    def extend(
        self,
        salt: str,
        path: np.ndarray,
        end: tuple[Run, int] | None,
        token_bytes: bytes,
        blocks: np.ndarray,
    ) -> bool:
        """Insert blocks behind a path from the root of `salt`; False, if the tree goes on there
        with the same content as the first of them, and nothing is done.

        `path` and `blocks` hold the first of these tokens. `end` is where the path's last node was
        once: its `place`, or None if the path is empty. Nothing else may be asked about what was
        inserted before it is settled.
        """
        depth = path.size
        content = self._block_bytes(token_bytes, depth)
        if end is None:
            run = self._root(salt)
        else:
            run, index = end
            if index >= run.blocks.size:
                run, index = self.place(path.item(-1))
            if index + 1 < run.blocks.size:
                if self._block_bytes(run.content, index + 1) == content:
                    return False
                self._split(run, index + 1)
        if content in run.children:
            return False
        stop = (depth + blocks.size) * self._stride
        new = self._insert(run, blocks.copy(), token_bytes[depth * self._stride : stop], content)
        self._unsettled.append(new)
        return True

    def settle(self) -> None:
        """Write down where the blocks are that paths were extended by, all at once."""
        if self._unsettled:
            runs, self._unsettled = self._unsettled, []
            heads = [run.blocks.item(0) for run in runs]
            blocks = np.concatenate([run.blocks for run in runs])
            self._heads[blocks] = np.repeat(heads, [run.blocks.size for run in runs])

    def graft(
        self, parent: int | str, token_bytes: bytes, blocks: np.ndarray, may_follow: np.ndarray
    ) -> np.ndarray:
        """Insert a path of blocks below `parent`; return the nodes that now hold the content.

        Where there is a node with the same content, it stands in the path if `may_follow`
        (bool[num_blocks]) says so; otherwise the path ends before it. Below the first block that
        is inserted nothing can be, as it was no node.
        """
        if not blocks.size:
            return NO_BLOCKS
        run, index = self._after(parent)
        path: list[np.ndarray] = []
        depth = 0
        while depth < blocks.size:
            if index == run.blocks.size:
                child = run.children.get(self._block_bytes(token_bytes, depth))
                if child is None:
                    break
                run, index = child, 0
            num_common = self._num_common(run, index, token_bytes, depth, blocks.size)
            if not num_common:
                break
            nodes = run.blocks[index : index + num_common]
            is_allowed = may_follow[nodes]
            if not is_allowed.all():
                path.append(nodes[: int(is_allowed.argmin())])
                return _joined(path)
            path.append(nodes)
            depth += num_common
            index += num_common
        if depth < blocks.size:
            if index < run.blocks.size:
                self._split(run, index)
            inserted = blocks[depth:].copy()
            content = token_bytes[depth * self._stride : blocks.size * self._stride]
            new = self._insert(run, inserted, content, content[: self._stride])
            self._heads[inserted] = new.blocks.item(0)
            path.append(inserted)
        return _joined(path)

    def has_child(self, parent: int | str, token_bytes: bytes, index: int) -> bool:
        """Whether there is a node below `parent` for block `index` of these tokens."""
        content = self._block_bytes(token_bytes, index)
        if isinstance(parent, str):
            return parent in self._roots and content in self._roots[parent].children
        run, place = self.place(parent)
        if place == run.blocks.size - 1:
            return content in run.children
        return self._block_bytes(run.content, place + 1) == content

    def prune(self, path: np.ndarray) -> None:
        """Take out the nodes of `path`, each the only child of the one before; the last is a
        leaf."""
        while path.size:
            run = self._runs[self._heads.item(path[-1])]
            num_gone = min(path.size, run.blocks.size)
            self._trim(run, num_gone)
            path = path[:-num_gone]

    def touch(self, path: np.ndarray) -> None:
        """These nodes were used now; offer the last of them afterwards."""
        self._clock += 1
        self._last_used[path] = self._clock

    def offer(self, block: int) -> None:
        """Let `block` be evicted if it is an unreferenced leaf."""
        if self.is_leaf(block) and not self._ref_counts[block]:
            if len(self._evictable) > 2 * self._heads.size + 64:
                self._evictable = [entry for entry in self._evictable if self._is_current(entry)]
                heapq.heapify(self._evictable)
            heapq.heappush(self._evictable, (self._last_used.item(block), block))

    def evict(self, num_blocks: int) -> np.ndarray:
        """Take out so many nodes, each of them the unreferenced leaf that was used least recently
        when its turn came; there must be as many. int32[num_blocks]."""
        evicted = []
        while num_blocks:
            entry = heapq.heappop(self._evictable)
            if not self._is_current(entry):
                continue
            last_used, block = entry
            run = self._runs[self._heads.item(block)]
            # Of a path that was used at once, a parent's turn comes right after its child's.
            end = run.blocks[-num_blocks:][::-1]
            goes = (self._last_used[end] == last_used) & (self._ref_counts[end] == 0)
            num_gone = end.size if goes.all() else int(goes.argmin())
            evicted.append(end[:num_gone])
            self._trim(run, num_gone)
            num_blocks -= num_gone
        return _joined(evicted)

    def is_leaf(self, block: int) -> bool:
        """Whether nothing is below a node."""
        run = self._runs[self._heads.item(block)]
        return not run.children and run.blocks.item(-1) == block

    @property
    def salts(self) -> set[str]:
        """Those that something is cached under."""
        return set(self._roots)

    def segments(self) -> Iterator[np.ndarray]:
        """The blocks of every run, behind the block above it if there is one."""
        for run in self._runs.values():
            assert run.parent is not None
            yield np.concatenate([run.parent.blocks[-1:], run.blocks])

    def _block_bytes(self, token_bytes: bytes, index: int) -> bytes:
        start = index * self._stride
        return token_bytes[start : start + self._stride]

    def _num_common(
        self, run: Run, index: int, token_bytes: bytes, depth: int, max_blocks: int
    ) -> int:
        """How many nodes of `run` from `index` on hold the tokens from block `depth` up to block
        `max_blocks`."""
        num_blocks = min(run.blocks.size - index, max_blocks - depth)
        ours = token_bytes[depth * self._stride : (depth + num_blocks) * self._stride]
        theirs = run.content[index * self._stride : (index + num_blocks) * self._stride]
        if ours == theirs:
            return num_blocks
        differs = np.frombuffer(ours, np.int32) != np.frombuffer(theirs, np.int32)
        return int(differs.argmax()) // self._page_size

    def _after(self, parent: int | str) -> tuple[Run, int]:
        """The run in which blocks below `parent` go on, and the index there."""
        if isinstance(parent, str):
            return self._root(parent), 0
        run, index = self.place(parent)
        return run, index + 1

    def _root(self, salt: str) -> Run:
        root = self._roots.get(salt)
        if root is None:
            root = self._roots[salt] = Run(salt=salt)
        return root

    def _insert(self, parent: Run, blocks: np.ndarray, content: bytes, first: bytes) -> Run:
        """Insert blocks, none of which is in the tree, below the last node of `parent`; `first` is
        the content of the first of them. It is left to the caller to set their head."""
        head = blocks.item(0)
        assert head not in self._runs, f"block {head} is in the tree already"
        run = Run("", parent, blocks, content)
        self._runs[head] = run
        parent.children[first] = run
        return run

    def _split(self, run: Run, index: int) -> None:
        """Let `run` end before `index`, and the rest be a run below it."""
        rest = Run(
            parent=run,
            blocks=run.blocks[index:],
            content=run.content[index * self._stride : run.blocks.size * self._stride],
            children=run.children,
        )
        for child in rest.children.values():
            child.parent = rest
        head = rest.blocks.item(0)
        self._heads[rest.blocks] = head
        self._runs[head] = rest
        run.blocks = run.blocks[:index]
        run.content = run.content[: index * self._stride]
        run.children = {rest.content[: self._stride]: rest}

    def _trim(self, run: Run, num_blocks: int) -> None:
        """Take out the last nodes of a run that has no children."""
        assert not run.children, f"block {run.blocks[-1]} has children"
        num_left = run.blocks.size - num_blocks
        gone = run.blocks[num_left:]
        self._heads[gone] = -1
        run.blocks = run.blocks[:num_left]
        if num_left:
            if len(run.content) > 2 * num_left * self._stride:
                run.content = run.content[: num_left * self._stride]
            self.offer(run.blocks.item(-1))
            return
        parent = run.parent
        assert parent is not None, "a root has no nodes"
        del self._runs[gone.item(0)]
        del parent.children[run.content[: self._stride]]
        if parent.blocks.size:
            self.offer(parent.blocks.item(-1))
        elif not parent.children:
            del self._roots[parent.salt]

    def _is_current(self, entry: tuple[int, int]) -> bool:
        last_used, block = entry
        return (
            self._heads.item(block) >= 0
            and self._last_used.item(block) == last_used
            and self._ref_counts.item(block) == 0
            and self.is_leaf(block)
        )

    def check_invariants(self) -> None:
        assert not self._unsettled
        nodes: list[int] = []
        evictable = {entry[1] for entry in self._evictable if self._is_current(entry)}
        for run, segment in zip(self._runs.values(), self.segments(), strict=True):
            parent, tail = run.parent, run.blocks.item(-1)
            assert self._runs[run.blocks.item(0)] is run
            assert (self._heads[run.blocks] == run.blocks[0]).all()
            assert 1 <= len(run.content) / (self._stride * run.blocks.size) <= 2
            assert parent is not None
            assert parent.children[run.content[: self._stride]] is run
            if parent.parent is None:
                assert self._roots[parent.salt] is parent
                assert not parent.blocks.size
            else:
                assert self._runs[parent.blocks.item(0)] is parent
            assert all(child.parent is run for child in run.children.values())
            counts = self._ref_counts[segment]
            assert (counts[1:] <= counts[:-1]).all(), f"references grow along {segment}"
            if not counts[-1]:
                last_used = self._last_used[segment[counts == 0]]
                assert (last_used[1:] <= last_used[:-1]).all(), f"{segment} is older than below"
            is_evictable = not run.children and not counts[-1]
            assert is_evictable == (tail in evictable), f"block {tail} is lost to eviction"
            nodes += run.blocks.tolist()
        assert sorted(nodes) == np.flatnonzero(self._heads >= 0).tolist()
        assert all(root.children for root in self._roots.values()), "a salt without nodes is kept"


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    if not parts:
        return NO_BLOCKS
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
