"""The sequences that have a seat: what they hold, which of them prefill and which decode.

Onboarding gives a sequence its seat, the cached prefix and blocks for all its known tokens; decodes
append blocks as they go.
"""

from collections import OrderedDict
from itertools import groupby
from typing import NamedTuple

import numpy as np

from tokasaurus.manager.block_allocator import BlockAllocator
from tokasaurus.manager.prefix_tree import NO_BLOCKS, Run
from tokasaurus.manager.sequence import Sequence, SequenceState
from tokasaurus.manager.slot_table import SlotTable

_NO_SLOTS = np.empty(0, np.intp)


class PrefixMatch(NamedTuple):
    """What onboarding a sequence would find and take."""

    sequence: Sequence
    path: np.ndarray
    """int32: tree nodes for the first of its tokens. Never changed; twins may hold the same."""
    token_bytes: bytes
    num_blocks: int
    """Of its table when it has its seat."""
    num_new_blocks: int
    """Blocks it takes off the available ones now, cached nodes that it would reference included."""
    num_final_blocks: int
    """The same when it ends by length."""
    end: tuple[Run, int] | None
    """Where the path's last node is: the path is valid as long as that run is so long."""


def _path_id(match: PrefixMatch) -> int:
    return id(match.path)


def _last_node(match: PrefixMatch) -> int | str:
    """The node below which its other blocks belong, or the salt."""
    return match.path.item(-1) if match.path.size else match.sequence.request.cache_salt


class RunningSet:
    """Seats, blocks, the line of prefills (strictly by onboarding) and the order of decodes."""

    def __init__(self, num_slots: int, max_num_tokens: int, num_blocks: int, page_size: int):
        max_blocks = min(-(-max_num_tokens // page_size), num_blocks)
        self.page_size = page_size
        self.blocks = BlockAllocator(num_blocks, page_size)
        self.slots = SlotTable(num_slots, max_blocks, num_blocks, page_size)
        self.prefilling: OrderedDict[int, Sequence] = OrderedDict()
        """By slot, in order of onboarding."""
        self.decode_slots = _NO_SLOTS
        """intp[D], in order; replaced, never changed in place."""
        self.num_releases = 0
        """How often a sequence left; the blocks that are not spoken for can't grow otherwise."""
        self.num_reserved_blocks = 0
        """Blocks that the seated sequences still take if all of them end by length."""
        self.freed_slots: list[int] = []
        """Seats given back that the worker has not been told of."""
        self._last_match: PrefixMatch | None = None
        """Samples of a prompt come one after the other: they are looked up once."""
        self._joining: list[int] = []
        self._has_leavers = False

    @property
    def num_running(self) -> int:
        return self.slots.num_slots - self.slots.num_free_slots

    @property
    def num_waiting_for_tokens(self) -> int:
        """Seated sequences that only wait for tokens in flight, to end or to be preempted."""
        self.refresh_decode_slots()
        return self.num_running - len(self.prefilling) - self.decode_slots.size

    def match(self, sequence: Sequence) -> PrefixMatch:
        """Look up the cached prefix; at least one token is left to compute."""
        if not sequence.is_cacheable:
            return self._found(sequence, NO_BLOCKS, b"", None)
        token_bytes = sequence.token_ids.tobytes()
        twin = self._last_match
        if (
            twin is not None
            and twin.token_bytes == token_bytes
            and twin.sequence.request.cache_salt == sequence.request.cache_salt
            and self._is_current(twin)
        ):
            match = self._found(sequence, twin.path, twin.token_bytes, twin.end)
        else:
            tree = self.blocks.tree
            max_matched = (sequence.token_ids.size - 1) // self.page_size
            path = tree.match(sequence.request.cache_salt, token_bytes, max_matched)
            end = tree.place(path.item(-1)) if path.size else None
            match = self._found(sequence, path, token_bytes, end)
        self._last_match = match
        return match

    def _found(
        self, sequence: Sequence, path: np.ndarray, token_bytes: bytes, end: tuple[Run, int] | None
    ) -> PrefixMatch:
        num_blocks = sequence.num_initial_blocks(self.page_size)
        num_final = sequence.max_num_blocks(self.page_size)
        num_shared = 0
        if path.size:
            num_shared = path.size - self.blocks.num_cached_along(path)
        return PrefixMatch(
            sequence,
            path,
            token_bytes,
            num_blocks,
            num_blocks - num_shared,
            num_final - num_shared,
            end,
        )

    def _is_current(self, match: PrefixMatch) -> bool:
        """Whether the path is in the tree, and can't be longer."""
        num_blocks = match.path.size
        if match.end is not None and match.end[0].blocks.size <= match.end[1]:
            return False
        if num_blocks == (match.sequence.token_ids.size - 1) // self.page_size:
            return True
        return not self.blocks.tree.has_child(_last_node(match), match.token_bytes, num_blocks)

    def onboard(self, matches: list[PrefixMatch]) -> None:
        """Seat these sequences at the end of the prefill line.

        Their new blocks must be available, and nothing may have changed since they were matched.
        """
        self.refresh_decode_slots()  # before a seat is used again
        blocks = self.blocks
        held = [match for match in matches if match.path.size]
        for _, twins in groupby(held, key=_path_id):
            same = list(twins)
            blocks.acquire(same[0].path, len(same))
        num_blocks = sum(match.num_blocks for match in matches)
        fresh = blocks.allocate(num_blocks - sum(match.path.size for match in held))
        tables, nums_tree_blocks = self._fill_tables(matches, fresh)
        blocks.tree.settle()
        num_matched = sum(match.sequence.num_matched_blocks for match in matches)
        blocks.give_back(fresh[num_blocks - num_matched :])
        self._seat([match.sequence for match in matches], tables, nums_tree_blocks)

    def _fill_tables(
        self, matches: list[PrefixMatch], fresh: np.ndarray
    ) -> tuple[list[np.ndarray], list[int]]:
        """Each one's block table, of its path and the first of the `fresh` blocks that are left,
        and how many blocks at its head are in the tree."""
        num_used = 0
        twins: bytes | None = None
        twins_path: np.ndarray | None = None
        tables, nums_tree_blocks = [], []
        for match in matches:
            sequence, path, token_bytes, num_blocks = match[:4]
            num_shared = 0
            if token_bytes and token_bytes is twins:
                if twins_path is None:
                    twins_path = self._match_again(sequence).path
                # What it could share is in the tree already.
                path = self._acquire_rest(path, twins_path)
            elif token_bytes:
                twins, twins_path = token_bytes, None
                shared = self._share_prompt(match, fresh, num_used)
                if shared is None:
                    match = self._match_again(sequence)
                    path = self._acquire_rest(path, match.path)
                    shared = self._share_prompt(match, fresh, num_used)
                    assert shared is not None, f"{sequence.request_id} was matched in part"
                num_shared = shared
            num_matched = path.size
            new_blocks = fresh[num_used : num_used + num_blocks - num_matched]
            num_used += num_blocks - num_matched
            tables.append(np.concatenate([path, new_blocks]) if num_matched else new_blocks)
            nums_tree_blocks.append(num_matched + num_shared)
            sequence.num_matched_blocks = num_matched
        return tables, nums_tree_blocks

    def _match_again(self, sequence: Sequence) -> PrefixMatch:
        """Those onboarded right before it may have inserted more of its prefix."""
        self.blocks.tree.settle()
        return self.match(sequence)

    def _seat(
        self, sequences: list[Sequence], tables: list[np.ndarray], nums_tree_blocks: list[int]
    ) -> None:
        """Put sequences that have their blocks at the end of the prefill line."""
        seats = self.slots.seat(sequences, tables)
        self.slots.num_tree_blocks[seats] = nums_tree_blocks
        for sequence in sequences:
            sequence.state = SequenceState.PREFILLING
            sequence.has_started = False
            self.prefilling[sequence.slot] = sequence
        self.num_reserved_blocks += int(
            (self.slots.max_num_blocks[seats] - self.slots.num_blocks[seats]).sum()
        )

    def _acquire_rest(self, path: np.ndarray, longer: np.ndarray) -> np.ndarray:
        """Hold a path of which a part is held; returns it."""
        if longer.size > path.size:
            self.blocks.acquire(longer[path.size :])
        return longer

    def _share_prompt(self, match: PrefixMatch, fresh: np.ndarray, first: int) -> int | None:
        """Insert those of its new blocks, in `fresh` from `first` on, that its known tokens fill
        into the tree; how many.

        None if the tree has a longer path for it now, as those before it have inserted some.
        """
        num_tokens, num_matched = match.sequence.token_ids.size, match.path.size
        num_own = num_tokens // self.page_size - num_matched
        if not num_own:
            return 0
        own_blocks = fresh[first : first + num_own]
        salt = match.sequence.request.cache_salt
        if self.blocks.tree.extend(salt, match.path, match.end, match.token_bytes, own_blocks):
            return num_own
        # The last token is always computed: if it ends a block, that block stays its own.
        return 0 if num_matched == (num_tokens - 1) // self.page_size else None

    def num_computed(self, sequence: Sequence) -> int:
        """Tokens of a prefill that are computed, or were in the tree when it was onboarded."""
        if sequence.has_started:
            return int(self.slots.num_scheduled[sequence.slot])
        return sequence.num_matched_blocks * self.page_size

    def num_cached_tokens(self, sequence: Sequence) -> int:
        """Tokens that its first chunk may skip if it is scheduled now."""
        matched = self.slots.blocks(sequence.slot)[: sequence.num_matched_blocks]
        is_scheduled = self.blocks.is_scheduled[matched]
        num_blocks = matched.size if is_scheduled.all() else int(is_scheduled.argmin())
        return num_blocks * self.page_size

    def mark_scheduled(self, sequence: Sequence, num_scheduled: int) -> None:
        """A chunk up to token `num_scheduled` is scheduled: later ones may read what it fills."""
        slots, slot = self.slots, sequence.slot
        first = int(slots.num_scheduled[slot]) // self.page_size
        filled = slots.blocks(slot)[first : num_scheduled // self.page_size]
        self.blocks.is_scheduled[filled] = True
        slots.num_scheduled[slot] = num_scheduled

    def finish_prefill(self, sequence: Sequence) -> None:
        """Its last chunk is scheduled, which draws a token: it decodes from the next step on.

        A vector in place of that token counts as one in flight.
        """
        slots, slot = self.slots, sequence.slot
        sequence.state = SequenceState.DECODING
        del self.prefilling[slot]
        slots.num_drawn[slot] += 1
        if slots.num_drawn[slot] < slots.max_num_tokens[slot]:
            slots.is_decoding[slot] = True
            self._joining.append(slot)

    def append_blocks(self, slots: np.ndarray) -> np.ndarray:
        """Append a block to each of these decoding slots, which differ; returns the blocks."""
        blocks = self.blocks.allocate(slots.size)
        self.slots.append_blocks(slots, blocks)
        self.num_reserved_blocks -= slots.size
        return blocks

    def advance_decodes(self, num_passes: int = 1) -> None:
        """So many decodes of every one of `decode_slots` are scheduled."""
        slots, decode_slots = self.slots, self.decode_slots
        slots.num_scheduled[decode_slots] += num_passes
        num_drawn = slots.num_drawn[decode_slots] + num_passes
        slots.num_drawn[decode_slots] = num_drawn
        leaving = decode_slots[num_drawn == slots.max_num_tokens[decode_slots]]
        if leaving.size:
            slots.is_decoding[leaving] = False
            self._has_leavers = True

    def take_back(self, row_slots: np.ndarray, num_passes: int) -> None:
        """So many scheduled decodes of each of these were not run. Blocks stay in the tables."""
        slots = self.slots
        slots.num_scheduled[row_slots] -= num_passes
        slots.num_drawn[row_slots] -= num_passes
        resting = row_slots[~slots.is_decoding[row_slots]]
        if not resting.size:
            return
        self.refresh_decode_slots()  # before one of those that left joins again
        for slot in resting.tolist():
            sequence = slots.sequences[slot]
            assert sequence is not None, f"slot {slot} is free"
            if not sequence.is_preempting:
                slots.is_decoding[slot] = True
                self._joining.append(slot)

    def stop_decoding(self, sequence: Sequence) -> None:
        """Schedule no more decodes of it."""
        if self.slots.is_decoding[sequence.slot]:
            self.slots.is_decoding[sequence.slot] = False
            self._has_leavers = True

    def refresh_decode_slots(self) -> None:
        """Take joiners and leavers into `decode_slots`; the order of the others stays."""
        if self._joining:
            joining = np.array(self._joining, np.intp)
            self._joining.clear()
            self.decode_slots = np.concatenate([self.decode_slots, joining])
            self._has_leavers = True
        if self._has_leavers:
            self.decode_slots = self.decode_slots[self.slots.is_decoding[self.decode_slots]]
            self._has_leavers = False

    def release(self, sequence: Sequence, *, is_sound: bool = True) -> None:
        """Take its seat away; what is computed of it stays cached unless it is not sound."""
        slot = sequence.slot
        self.stop_decoding(sequence)
        self.prefilling.pop(slot, None)
        table = self.slots.blocks(slot)
        path = table[: self.slots.num_tree_blocks[slot]]
        if is_sound:
            path = np.concatenate([path, self._share_computed(sequence, table)])
        self.num_reserved_blocks -= int(self.slots.max_num_blocks[slot]) - table.size
        self.blocks.release(table, path)
        if not is_sound:
            self.blocks.discard(path)
        if sequence.has_started:
            self.freed_slots.append(slot)
            sequence.has_started = False
        self.slots.unseat(slot)
        self.num_releases += 1

    def _share_computed(self, sequence: Sequence, table: np.ndarray) -> np.ndarray:
        """Insert its private full blocks whose tokens are known and computed into the tree."""
        slot, first = sequence.slot, int(self.slots.num_tree_blocks[sequence.slot])
        num_computed = min(self.slots.num_known[slot], self.slots.num_scheduled[slot])
        last = int(num_computed) // self.page_size
        if last <= first:
            return NO_BLOCKS
        token_ids = self.slots.known_tokens(slot, first * self.page_size)
        return self.blocks.share(
            int(table[first - 1]) if first else sequence.request.cache_salt,
            token_ids[: (last - first) * self.page_size].tobytes(),
            table[first:last],
            are_computed=True,
        )

    def check_invariants(self) -> None:
        self.refresh_decode_slots()
        slots = self.slots
        slots.check_invariants()
        self.blocks.check_invariants()
        ref_counts = np.zeros_like(self.blocks.ref_counts)
        num_reserved = 0
        for sequence in slots.sequences:
            if sequence is None:
                continue
            table = slots.blocks(sequence.slot)
            ref_counts[table] += 1
            num_reserved += int(slots.max_num_blocks[sequence.slot]) - table.size
            num_tree_blocks = slots.num_tree_blocks[sequence.slot]
            assert self.blocks.tree.is_node(table[:num_tree_blocks]).all()
            assert not self.blocks.tree.is_node(table[num_tree_blocks:]).any()
            is_prefilling = sequence.state is SequenceState.PREFILLING
            assert is_prefilling == (sequence.slot in self.prefilling)
        assert (ref_counts == self.blocks.ref_counts).all(), "reference counts are off"
        assert num_reserved == self.num_reserved_blocks
        assert sorted(self.decode_slots.tolist()) == np.flatnonzero(slots.is_decoding).tolist()
