"""The allocator and its prefix tree against a dictionary of prefixes and a list in order of use."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tokasaurus.manager.block_allocator import BlockAllocator

PAGE_SIZE = 2
Prefix = tuple[int, ...]


class AllocatorMachine(RuleBasedStateMachine):
    """Tables are held, computed and released at random; the oracle knows prefixes, not blocks."""

    @initialize(num_blocks=st.integers(1, 14))
    def start(self, num_blocks: int) -> None:
        self.allocator = BlockAllocator(num_blocks, PAGE_SIZE)
        self.num_blocks = num_blocks
        self.tables: list[tuple[Prefix, list[int], int]] = []
        self.content: dict[int, Prefix] = {}
        self.last_used: dict[Prefix, int] = {}
        """Cached prefixes that nobody references."""
        self.clock = 0

    def _match(self, tokens: Prefix) -> list[int]:
        raw = np.array(tokens, "<i4").tobytes()
        return self.allocator.tree.match("", raw, len(tokens) // PAGE_SIZE)

    @rule(tokens=st.lists(st.integers(0, 1), min_size=2, max_size=12))
    def hold(self, tokens: list[int]) -> None:
        """Take a table of full blocks that are computed at once."""
        num_full = len(tokens) // PAGE_SIZE
        prefix = tuple(tokens[: num_full * PAGE_SIZE])
        path = self._match(prefix)
        for index, block in enumerate(path):
            assert self.content[block] == prefix[: (index + 1) * PAGE_SIZE]
        expected = 0
        referenced = {p[: i * PAGE_SIZE] for p, _, n in self.tables for i in range(1, n + 1)}
        known = referenced | self.last_used.keys()
        while expected < num_full and prefix[: (expected + 1) * PAGE_SIZE] in known:
            expected += 1
        assert len(path) == expected
        num_new = num_full - len(path)
        num_cached = self.allocator.num_cached_along(np.array(path, np.int32))
        if num_new + num_cached > self.allocator.num_available:
            return
        self.allocator.acquire(np.array(path, np.int32))
        for index in range(1, len(path) + 1):
            self.last_used.pop(prefix[: index * PAGE_SIZE], None)
        self._expect_evictions(num_new - self.allocator.num_free)
        blocks = self.allocator.allocate(num_new)
        new = blocks.tolist()
        for index, block in enumerate(new, start=len(path) + 1):
            self.content[block] = prefix[: index * PAGE_SIZE]
        raw = np.array(prefix[len(path) * PAGE_SIZE :], "<i4").tobytes()
        self.allocator.share(path[-1] if path else "", raw, blocks, are_computed=True)
        self.tables.append((prefix, path + new, num_full))

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
        index = data.draw(st.integers(0, len(self.tables) - 1))
        prefix, table, num_full = self.tables.pop(index)
        self.allocator.release(np.array(table, np.int32), table)
        self.clock += 1
        held = {p[: i * PAGE_SIZE] for p, _, n in self.tables for i in range(1, n + 1)}
        for length in range(1, num_full + 1):
            if prefix[: length * PAGE_SIZE] not in held:
                self.last_used[prefix[: length * PAGE_SIZE]] = self.clock

    @precondition(lambda self: hasattr(self, "allocator"))
    @rule(count=st.integers(1, 6))
    def churn(self, count: int) -> None:
        """Allocate private blocks, which evicts, and give them back."""
        if count > self.allocator.num_available:
            return
        self._expect_evictions(count - self.allocator.num_free)
        blocks = self.allocator.allocate(count)
        self.allocator.release(blocks, [])

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "allocator"):
            return
        self.allocator.check_invariants()
        assert self.allocator.num_cached == len(self.last_used)
        for prefix in self.last_used:
            assert len(self._match(prefix)) == len(prefix) // PAGE_SIZE


TestAllocator = AllocatorMachine.TestCase
TestAllocator.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_heap_of_the_tree_stays_small() -> None:
    allocator = BlockAllocator(4, PAGE_SIZE)
    raw = np.array([1, 2], "<i4").tobytes()
    blocks = allocator.allocate(1)
    path = allocator.share("", raw, blocks, are_computed=True)
    allocator.release(blocks, path)
    for _ in range(1000):
        allocator.acquire(np.array(path, np.int32))
        allocator.release(blocks, path)
    assert allocator.tree.num_heap_entries < 100
    allocator.check_invariants()


def test_blocks_nobody_computed_leave_the_tree() -> None:
    allocator = BlockAllocator(4, PAGE_SIZE)
    raw = np.arange(6, dtype="<i4").tobytes()
    blocks = allocator.allocate(3)
    path = allocator.share("", raw, blocks, are_computed=False)
    allocator.is_scheduled[blocks[0]] = True
    allocator.release(blocks, path)
    assert allocator.num_cached == 1
    assert allocator.num_free == 3
    assert allocator.tree.match("", raw, 3) == [blocks[0]]
    allocator.check_invariants()
