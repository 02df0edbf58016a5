"""The allocator and its prefix tree against a dictionary of prefixes and a list in order of use."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.examples import examples
from tokasaurus.manager.block_allocator import BlockAllocator
from tokasaurus.manager.prefix_tree import NO_BLOCKS

PAGE_SIZE = 2
Prefix = tuple[int, ...]


@dataclass
class _Table:
    tokens: Prefix
    blocks: np.ndarray
    num_shared: int
    """At its head, those that are nodes of the tree."""


def _raw(tokens: Iterable[int]) -> bytes:
    return np.array(list(tokens), "<i4").tobytes()


class AllocatorMachine(RuleBasedStateMachine):
    """Tables are held, computed and released at random; the oracle knows prefixes, not blocks."""

    @initialize(num_blocks=st.integers(1, 20))
    def start(self, num_blocks: int) -> None:
        self.allocator = BlockAllocator(num_blocks, PAGE_SIZE)
        self.num_blocks = num_blocks
        self.tables: list[_Table] = []
        self.content: dict[int, Prefix] = {}
        self.last_used: dict[Prefix, int] = {}
        """Cached prefixes that nobody references."""
        self.clock = 0

    def _match(self, tokens: Prefix) -> np.ndarray:
        return self.allocator.tree.match("", _raw(tokens), len(tokens) // PAGE_SIZE)

    def _held(self) -> set[Prefix]:
        """Prefixes that are in the tree because of tables."""
        return {t.tokens[: i * PAGE_SIZE] for t in self.tables for i in range(1, t.num_shared + 1)}

    @rule(tokens=st.lists(st.integers(0, 1), min_size=2, max_size=16), is_late=st.booleans())
    def hold(self, tokens: list[int], is_late: bool) -> None:
        """Take a table of full blocks, which are shared at once, or when it is released."""
        num_full = len(tokens) // PAGE_SIZE
        prefix = tuple(tokens[: num_full * PAGE_SIZE])
        path = self._match(prefix)
        for index, block in enumerate(path.tolist()):
            assert self.content[block] == prefix[: (index + 1) * PAGE_SIZE]
        expected = 0
        known = self._held() | self.last_used.keys()
        while expected < num_full and prefix[: (expected + 1) * PAGE_SIZE] in known:
            expected += 1
        assert len(path) == expected
        num_new = num_full - len(path)
        if num_new + self.allocator.num_cached_along(path) > self.allocator.num_available:
            return
        self.allocator.acquire(path)
        for index in range(1, len(path) + 1):
            self.last_used.pop(prefix[: index * PAGE_SIZE], None)
        self._expect_evictions(num_new - self.allocator.num_free)
        blocks = np.concatenate([path, self.allocator.allocate(num_new)])
        for index, block in enumerate(blocks.tolist(), start=1):
            self.content[block] = prefix[: index * PAGE_SIZE]
        table = _Table(prefix, blocks, path.size)
        if not is_late:
            assert self._share(table).tolist() == blocks[path.size :].tolist()
            table.num_shared = num_full
        self.tables.append(table)

    def _share(self, table: "_Table") -> np.ndarray:
        n = table.num_shared
        return self.allocator.share(
            table.blocks.item(n - 1) if n else "",
            _raw(table.tokens[n * PAGE_SIZE :]),
            table.blocks[n:],
            are_computed=True,
        )

    def _expect_evictions(self, count: int) -> None:
        """Drop the least recently used prefixes that no cached longer one extends."""
        for _ in range(count):
            leaves = [
                prefix
                for prefix in self.last_used
                if not any(o != prefix and o[: len(prefix)] == prefix for o in self.last_used)
            ]
            del self.last_used[min(leaves, key=lambda prefix: self.last_used[prefix])]

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """Share what is not in the tree yet, so where others did so meanwhile their nodes stay."""
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        path = np.concatenate([table.blocks[: table.num_shared], self._share(table)])
        for index, block in enumerate(path.tolist(), start=1):
            assert self.content[block] == table.tokens[: index * PAGE_SIZE]
        self.allocator.release(table.blocks, path)
        self.clock += 1
        held = self._held()
        for length in range(1, table.blocks.size + 1):
            if table.tokens[: length * PAGE_SIZE] not in held:
                self.last_used[table.tokens[: length * PAGE_SIZE]] = self.clock

    @precondition(lambda self: hasattr(self, "allocator"))
    @rule(count=st.integers(1, 6))
    def churn(self, count: int) -> None:
        """Allocate private blocks, which evicts, and give them back."""
        if count > self.allocator.num_available:
            return
        self._expect_evictions(count - self.allocator.num_free)
        blocks = self.allocator.allocate(count)
        self.allocator.release(blocks, NO_BLOCKS)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "allocator"):
            return
        self.allocator.check_invariants()
        assert self.allocator.num_cached == len(self.last_used)
        for prefix in self.last_used:
            assert self._match(prefix).size == len(prefix) // PAGE_SIZE


TestAllocator = AllocatorMachine.TestCase
TestAllocator.settings = settings(max_examples=examples(25, searching=100), stateful_step_count=40)


def _cache(allocator: BlockAllocator, tokens: Iterable[int], salt: str = "") -> np.ndarray:
    """Compute, share and release; the path that holds the tokens."""
    raw = _raw(tokens)
    num_blocks = len(raw) // (4 * PAGE_SIZE)
    path = allocator.tree.match(salt, raw, num_blocks)
    allocator.acquire(path)
    table = np.concatenate([path, allocator.allocate(num_blocks - path.size)])
    parent = path.item(-1) if path.size else salt
    rest = raw[4 * PAGE_SIZE * path.size :]
    path = np.concatenate(
        [path, allocator.share(parent, rest, table[path.size :], are_computed=True)]
    )
    allocator.release(table, path)
    allocator.check_invariants()
    return path


def test_heap_of_the_tree_stays_small() -> None:
    allocator = BlockAllocator(4, PAGE_SIZE)
    path = _cache(allocator, range(2))
    for _ in range(1000):
        allocator.acquire(path)
        allocator.release(path, path)
    assert allocator.tree.num_heap_entries < 100
    allocator.check_invariants()


def test_blocks_nobody_computed_leave_the_tree() -> None:
    allocator = BlockAllocator(4, PAGE_SIZE)
    raw = _raw(range(6))
    blocks = allocator.allocate(3)
    path = allocator.share("", raw, blocks, are_computed=False)
    allocator.is_scheduled[blocks[0]] = True
    allocator.release(blocks, path)
    assert allocator.num_cached == 1
    assert allocator.num_free == 3
    assert allocator.tree.match("", raw, 3).tolist() == [blocks[0]]
    allocator.check_invariants()


def test_runs_part_where_contents_do_and_grow_again_after_eviction() -> None:
    allocator = BlockAllocator(16, PAGE_SIZE)
    tree = allocator.tree
    long = _cache(allocator, range(20))
    assert tree.num_runs == 1
    _cache(allocator, [*range(11), 99])  # parts within the sixth block
    assert tree.num_runs == 3
    assert tree.match("", _raw(range(20)), 10).tolist() == long.tolist()
    allocator.allocate(8)  # five that were free, then the end of the path used less recently
    allocator.check_invariants()
    assert tree.match("", _raw(range(20)), 10).tolist() == long[:7].tolist()
    allocator.allocate(2)
    assert tree.match("", _raw(range(20)), 10).tolist() == long[:5].tolist()
    assert tree.num_runs == 2
    regrown = BlockAllocator(16, PAGE_SIZE)
    _cache(regrown, range(20))
    regrown.release(regrown.allocate(9), NO_BLOCKS)
    assert len(regrown.tree) == 7
    again = _cache(regrown, range(20))
    assert regrown.tree.num_runs == 2
    assert regrown.tree.match("", _raw(range(20)), 10).tolist() == again.tolist()


def test_a_node_keeps_its_place_or_loses_it_for_good() -> None:
    """Who remembers a path by its end never takes another one for it."""
    allocator = BlockAllocator(8, PAGE_SIZE)
    tree = allocator.tree
    path = _cache(allocator, range(12))
    ends = [tree.place(block) for block in path.tolist()]
    assert [index for _, index in ends] == list(range(6))
    _cache(allocator, [*range(6), 99, 99])
    assert [index < run.blocks.size for run, index in ends] == [True] * 3 + [False] * 3
    assert all(
        run.blocks[index] == block for (run, index), block in zip(ends[:3], path, strict=False)
    )
    allocator.allocate(8)
    assert not tree.match("", _raw(range(12)), 6).size
    assert not any(index < run.blocks.size for run, index in ends)


def test_salts_keep_contents_apart_and_leave_with_their_last_node() -> None:
    allocator = BlockAllocator(6, PAGE_SIZE)
    first, second = _cache(allocator, range(4), "a"), _cache(allocator, range(4), "b")
    assert not set(first.tolist()) & set(second.tolist())
    assert allocator.tree.salts == {"a", "b"}
    allocator.allocate(4)
    assert allocator.tree.salts == {"b"}
    allocator.check_invariants()
