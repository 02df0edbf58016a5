"""Hot state of the running sequences: structure of arrays indexed by slot.

Of a sequence with its seat at slot s, tokens [0, num_known[s]) are known here, the KV of tokens
[0, num_scheduled[s]) is written or will be by steps that are sent, and num_drawn[s] tokens exist
once those steps have run. While it decodes, num_drawn[s] = num_scheduled[s] + 1.

Token ids of outputs are kept per KV block, so that they are found and freed with it.
"""

import numpy as np

from tokasaurus.manager.ragged import ragged_places
from tokasaurus.manager.sequence import Sequence, max_num_blocks


class SlotTable:
    """Seats 0..num_slots-1. Rows of the block table are backed by memory only where written."""

    def __init__(self, num_slots: int, max_blocks: int, num_blocks: int, page_size: int) -> None:
        self.num_slots = num_slots
        self.page_size = page_size
        self.sequences: list[Sequence | None] = [None] * num_slots
        self.is_seated = np.zeros(num_slots, bool)
        self.request_ids = np.zeros(num_slots, np.int64)
        self.epochs = np.zeros(num_slots, np.int64)
        """Rises when the seat is given back: rows of steps from before are dropped."""
        self.is_decoding = np.zeros(num_slots, bool)
        """Takes part in the next step's decodes."""
        self.num_known = np.zeros(num_slots, np.int32)
        self.num_scheduled = np.zeros(num_slots, np.int32)
        self.num_drawn = np.zeros(num_slots, np.int32)
        self.max_num_tokens = np.zeros(num_slots, np.int32)
        self.num_prompt_tokens = np.zeros(num_slots, np.int32)
        self.kinds = np.zeros(num_slots, np.int64)
        self.prompt_keys = np.zeros(num_slots, np.int64)
        self.quantiles = np.zeros(num_slots)
        self.num_tree_blocks = np.zeros(num_slots, np.int32)
        """Blocks at the head of the table that are nodes of the prefix tree."""
        self.num_blocks = np.zeros(num_slots, np.int32)
        self.max_num_blocks = np.zeros(num_slots, np.int32)
        self.capacity = np.zeros(num_slots, np.int32)
        """Tokens that fit in the table's blocks."""
        self.last_tokens = np.zeros(num_slots, np.int32)
        """The newest known output."""
        self.num_logprobs = np.full(num_slots, -1, np.int32)
        """`num_top_logprobs` of the request."""
        self.num_single_tokens = np.zeros(num_slots, np.int32)
        self.block_table = np.zeros((num_slots, max_blocks), np.int32)
        self._block_tokens = np.zeros((num_blocks, page_size), np.int32)
        """Outputs at the places where their KV is."""
        self._free_slots = list(range(num_slots - 1, -1, -1))

    @property
    def num_free_slots(self) -> int:
        return len(self._free_slots)

    def seat(self, sequences: list[Sequence], tables: list[np.ndarray]) -> np.ndarray:
        """Give each of `sequences` a slot and its first blocks; the slots, intp[N]."""
        taken = self._free_slots[-len(sequences) :][::-1]
        del self._free_slots[-len(sequences) :]
        for slot, sequence in zip(taken, sequences, strict=True):
            sequence.slot = slot
            self.sequences[slot] = sequence
        slots = np.array(taken, np.intp)
        self.is_seated[slots] = True
        requests = [sequence.request for sequence in sequences]
        self.request_ids[slots] = [request.request_id for request in requests]
        self.num_logprobs[slots] = [request.sampling.num_top_logprobs for request in requests]
        self.num_single_tokens[slots] = [s.num_single_tokens for s in sequences]
        num_tokens = [sequence.token_ids.size for sequence in sequences]
        self.num_known[slots] = self.num_drawn[slots] = num_tokens
        self.num_scheduled[slots] = 0
        self.is_decoding[slots] = False
        max_num_tokens = np.array([sequence.max_num_tokens for sequence in sequences])
        self.max_num_tokens[slots] = max_num_tokens
        self.max_num_blocks[slots] = max_num_blocks(max_num_tokens, self.page_size)
        self.num_prompt_tokens[slots] = [sequence.num_prompt_tokens for sequence in sequences]
        self.quantiles[slots] = [sequence.quantile for sequence in sequences]
        self.kinds[slots] = [sequence.kind for sequence in sequences]
        self.prompt_keys[slots] = [sequence.prompt_key for sequence in sequences]
        num_blocks = np.array([table.size for table in tables])
        self.num_blocks[slots] = num_blocks
        self.capacity[slots] = num_blocks * self.page_size
        places = ragged_places(slots * self.block_table.shape[1], num_blocks)
        self.block_table.reshape(-1)[places] = np.concatenate(tables)
        return slots

    def unseat(self, slot: int) -> None:
        """Give the slot back; its block table is no longer valid."""
        sequence = self.sequences[slot]
        assert sequence is not None
        sequence.slot = -1
        self.sequences[slot] = None
        self.is_seated[slot] = False
        self.is_decoding[slot] = False
        self.epochs[slot] += 1
        self._free_slots.append(slot)

    def blocks(self, slot: int) -> np.ndarray:
        """View of the slot's block table."""
        return self.block_table[slot, : self.num_blocks[slot]]

    def append_blocks(self, slots: np.ndarray, blocks: np.ndarray) -> None:
        """Append one block to each of these slots' tables, for the token at its end."""
        self.block_table[slots, self.num_blocks[slots]] = blocks
        self.num_blocks[slots] += 1
        self.capacity[slots] += self.page_size
        # The token may be known already; if it is not, it is written when it arrives.
        self._block_tokens[blocks, 0] = self.last_tokens[slots]

    def append_tokens(self, slots: np.ndarray, token_ids: np.ndarray) -> None:
        """One new output for each of these slots is known: int32[S]."""
        positions = self.num_known[slots]
        self.num_known[slots] = positions + 1
        self.last_tokens[slots] = token_ids
        self._write_tokens(slots, positions, token_ids)

    def append_passes(self, slots: np.ndarray, token_ids: np.ndarray) -> None:
        """Several are: int32[R, S]."""
        num_passes = len(token_ids)
        first = self.num_known[slots]
        self.num_known[slots] = first + num_passes
        self.last_tokens[slots] = token_ids[-1]
        positions = first + np.arange(num_passes, dtype=np.int32)[:, None]
        self._write_tokens(np.tile(slots, num_passes), positions.ravel(), token_ids.ravel())

    def _write_tokens(
        self, slots: np.ndarray, positions: np.ndarray, token_ids: np.ndarray
    ) -> None:
        """Keep outputs by block, but those that have none yet."""
        has_block = positions < self.capacity[slots]
        if np.count_nonzero(has_block) < slots.size:
            slots, positions = slots[has_block], positions[has_block]
            token_ids = token_ids[has_block]
        columns, offsets = np.divmod(positions, self.page_size)
        self._block_tokens[self.block_table[slots, columns], offsets] = token_ids

    def known_tokens(self, slot: int, start: int = 0) -> np.ndarray:
        """int32: the known tokens of the sequence at `slot` from token `start` on."""
        sequence = self.sequences[slot]
        assert sequence is not None
        num_known = self.num_known.item(slot)
        num_initial = sequence.token_ids.size
        if num_known == num_initial:
            return sequence.token_ids[start:]
        first, end = max(start, num_initial), min(num_known, self.capacity.item(slot))
        blocks = self.block_table[slot, first // self.page_size : -(-end // self.page_size)]
        outputs = self._block_tokens[blocks].ravel()
        first_held = first // self.page_size * self.page_size
        token_ids = np.empty(num_known - start, np.int32)
        token_ids[: first - start] = sequence.token_ids[start:]
        token_ids[first - start : end - start] = outputs[first - first_held : end - first_held]
        token_ids[-1] = self.last_tokens[slot]
        return token_ids

    def num_tokens_in_flight(self, slot: int) -> int:
        return int(self.num_drawn[slot] - self.num_known[slot])

    def check_invariants(self) -> None:
        taken = [s for s, sequence in enumerate(self.sequences) if sequence is not None]
        assert sorted(taken + self._free_slots) == list(range(self.num_slots))
        assert not self.is_decoding[self._free_slots].any()
        assert np.flatnonzero(self.is_seated).tolist() == taken
        for slot in taken:
            sequence = self.sequences[slot]
            assert sequence is not None
            assert sequence.slot == slot
            known, drawn = int(self.num_known[slot]), int(self.num_drawn[slot])
            scheduled, capacity = int(self.num_scheduled[slot]), int(self.capacity[slot])
            assert known <= drawn <= sequence.max_num_tokens
            assert scheduled <= capacity == self.num_blocks[slot] * self.page_size
            assert drawn <= max(capacity + 1, sequence.token_ids.size)
            assert self.num_blocks[slot] <= max(
                sequence.max_num_blocks(self.page_size),
                sequence.num_initial_blocks(self.page_size),
            )
            if drawn > sequence.token_ids.size:
                assert drawn == scheduled + 1
            if self.is_decoding[slot]:
                assert drawn < sequence.max_num_tokens
