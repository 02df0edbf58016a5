"""The worker's mirror of the manager's slots: structure of arrays, indexed by slot."""

import numpy as np

from tokasaurus.ipc.messages.to_manager import TokenSampling
from tokasaurus.ipc.messages.to_worker import AddedSlot, StepInput
from tokasaurus.worker.stop_tokens import SlotStopTokens

_FIRST_CAPACITY = 64


class SlotTable:
    """Block tables, lengths and sampling parameters; columns grow with the highest slot.

    Block tables have room for the longest sequence; untouched memory of theirs is never committed.
    """

    def __init__(self, *, max_blocks_per_slot: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self.capacity = _FIRST_CAPACITY
        self.block_tables = np.zeros((self.capacity, max_blocks_per_slot), np.int32)
        self.num_blocks = np.zeros(self.capacity, np.int32)
        self.kv_lens = np.zeros(self.capacity, np.int64)
        self.num_prompt_tokens = np.zeros(self.capacity, np.int64)
        self.temperature = np.zeros(self.capacity, np.float32)
        self.top_k = np.zeros(self.capacity, np.int32)
        self.top_p = np.ones(self.capacity, np.float32)
        self.min_p = np.zeros(self.capacity, np.float32)
        self.seeds = np.zeros(self.capacity, np.int64)
        self.min_tokens = np.zeros(self.capacity, np.int64)
        self.num_top_logprobs = np.full(self.capacity, -1, np.int32)
        self.num_prompt_logprobs = np.full(self.capacity, -1, np.int32)
        self.banned_ids: dict[int, np.ndarray] = {}
        """int64 token ids of the slots that have a min_tokens."""
        self.stop_tokens = SlotStopTokens(vocab_size)

    def apply(self, step: StepInput) -> None:
        """Free, add and append, in this order."""
        if len(step.freed_slots):
            for slot in step.freed_slots.tolist():
                self.num_blocks[slot] = 0
                self.banned_ids.pop(slot, None)
                self.stop_tokens.remove(slot)
        if step.added_slots:
            self._reserve(max(added.slot for added in step.added_slots) + 1)
            for added in step.added_slots:
                self._add(added)
        if len(step.appended_slots):
            self._append(step.appended_slots, step.appended_blocks)

    def any_bans(self, slots: np.ndarray) -> bool:
        """Whether one of the slots has tokens that it must not draw yet."""
        if not self.banned_ids:
            return False
        num_output_tokens = self.kv_lens[slots] + 1 - self.num_prompt_tokens[slots]
        early = slots[num_output_tokens < self.min_tokens[slots]]
        return any(slot in self.banned_ids for slot in early.tolist())

    def _add(self, added: AddedSlot) -> None:
        slot = added.slot
        self.num_blocks[slot] = 0
        self.kv_lens[slot] = added.num_cached_tokens
        self.num_prompt_tokens[slot] = added.num_prompt_tokens
        self._set_sampling(slot, added.sampling)
        self.stop_tokens.set(slot, added.stop_token_ids)

    def _set_sampling(self, slot: int, sampling: TokenSampling) -> None:
        self.temperature[slot] = sampling.temperature
        self.top_k[slot] = min(sampling.top_k, self._vocab_size)
        self.top_p[slot] = sampling.top_p
        self.min_p[slot] = sampling.min_p
        self.seeds[slot] = sampling.seed
        self.min_tokens[slot] = sampling.min_tokens
        self.num_top_logprobs[slot] = min(sampling.num_top_logprobs, self._vocab_size)
        self.num_prompt_logprobs[slot] = min(sampling.num_prompt_logprobs, self._vocab_size)
        banned = np.array(sampling.banned_until_min_tokens, np.int64)
        banned = banned[(banned >= 0) & (banned < self._vocab_size)]
        if sampling.min_tokens > 0 and len(banned):
            self.banned_ids[slot] = banned
        else:
            self.banned_ids.pop(slot, None)

    def _append(self, slots: np.ndarray, blocks: np.ndarray) -> None:
        """Entries of one slot are in table order, but those of different slots may interleave."""
        order = np.argsort(slots, kind="stable")
        owners, first, counts = np.unique(slots[order], return_index=True, return_counts=True)
        rank = np.arange(len(order)) - np.repeat(first, counts)
        columns = np.repeat(self.num_blocks[owners], counts) + rank
        self.block_tables[np.repeat(owners, counts), columns] = blocks[order]
        self.num_blocks[owners] += counts.astype(np.int32)

    def _reserve(self, num_slots: int) -> None:
        if num_slots <= self.capacity:
            return
        capacity = max(num_slots, 2 * self.capacity)
        used = int(self.num_blocks.max())
        tables = np.zeros((capacity, self.block_tables.shape[1]), np.int32)
        tables[: self.capacity, :used] = self.block_tables[:, :used]
        self.block_tables = tables
        for name in (
            "num_blocks",
            "kv_lens",
            "num_prompt_tokens",
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "seeds",
            "min_tokens",
            "num_top_logprobs",
            "num_prompt_logprobs",
        ):
            column = getattr(self, name)
            setattr(
                self, name, np.concatenate([column, np.zeros(capacity - len(column), column.dtype)])
            )
        self.capacity = capacity
