"""Expands a step into what the model, attention and sampling want, with vectorised numpy.

Shapes: P prefill chunks, D decodes, R = P + D rows, T tokens of all rows, S rows that sample.
"""

from dataclasses import dataclass

import numpy as np

from tokasaurus.ipc.messages.to_worker import HydragenGroup, StepInput
from tokasaurus.model.attention.backend import AttentionBatch
from tokasaurus.model.sampling.sampler import SamplingBatch
from tokasaurus.worker.slot_table import SlotTable


@dataclass(slots=True, kw_only=True)
class PromptChunk:
    """A prefill chunk whose tokens are to be scored."""

    slot: int
    first_token: int
    """Of the chunk, among the step's tokens."""
    start: int
    """Position of that token in the sequence."""
    num_tokens: int
    """Of the chunk's tokens, those that belong to the original prompt."""
    num_top_logprobs: int
    continues: bool
    """More prompt tokens come in a later chunk."""


@dataclass(slots=True, kw_only=True)
class DeviceBatch:
    """One step's arrays, on the host."""

    prefill_ids: np.ndarray
    """int64: tokens of the prefill chunks; the decodes' tokens are known only to the device."""
    decode_slots: np.ndarray
    """int64[D]"""
    positions: np.ndarray
    """int64[T]"""
    attention: AttentionBatch
    sampled_tokens: np.ndarray
    """int64[S]: which of the step's tokens a new token is drawn after."""
    sampled_slots: np.ndarray
    """int64[S]: where the drawn tokens go."""
    sampling: SamplingBatch
    prompt_chunks: list[PromptChunk]


class DecodeOrder:
    """Which slots decode, in which order and groups: steps say so only when it changes."""

    def __init__(self) -> None:
        self.slots = np.empty(0, np.int64)
        self.hydragen_groups: list[HydragenGroup] = []

    def update(self, step: StepInput) -> None:
        if step.decode_slots is not None:
            self.slots = step.decode_slots.astype(np.int64)
        elif len(step.freed_slots):
            freed = np.isin(self.slots, step.freed_slots)
            if freed.any():
                self.slots = self.slots[~freed]
                self.hydragen_groups = []  # their row numbers no longer hold
        if step.hydragen_groups is not None:
            self.hydragen_groups = step.hydragen_groups


class BatchBuilder:
    """Keeps the slot table, the decode list and the Hydragen groups from step to step."""

    def __init__(self, table: SlotTable, page_size: int) -> None:
        self.table = table
        self._page_size = page_size
        self._order = DecodeOrder()

    @property
    def decode_slots(self) -> np.ndarray:
        """int64[D]: a new array whenever they change."""
        return self._order.slots

    @property
    def hydragen_groups(self) -> list[HydragenGroup]:
        """Of the decoding slots."""
        return self._order.hydragen_groups

    def apply(self, step: StepInput) -> None:
        """Take in what the step changes."""
        self.table.apply(step)
        self._order.update(step)

    def build(self, step: StepInput) -> DeviceBatch:
        """Expand a step that has been applied. KV lengths in the table are advanced by it."""
        prefill_slots = step.prefill_slots.astype(np.int64)
        slots_R = np.concatenate([prefill_slots, self._order.slots])
        query_lens = np.ones(len(slots_R), np.int64)
        query_lens[: len(prefill_slots)] = step.prefill_lens
        starts = self.table.kv_lens[slots_R]
        kv_lens = starts + query_lens
        self.table.kv_lens[slots_R] = kv_lens
        token_ends = np.cumsum(query_lens)
        sampled_rows = np.concatenate(
            [
                np.flatnonzero(step.prefill_samples),
                np.arange(len(prefill_slots), len(slots_R)),
            ]
        )
        sampled_slots = slots_R[sampled_rows]
        positions = np.repeat(kv_lens - token_ends, query_lens) + np.arange(query_lens.sum())
        return DeviceBatch(
            prefill_ids=step.prefill_ids.astype(np.int64),
            decode_slots=self._order.slots,
            positions=positions,
            attention=self._attention(len(prefill_slots), slots_R, query_lens, kv_lens, positions),
            sampled_tokens=token_ends[sampled_rows] - 1,
            sampled_slots=sampled_slots,
            sampling=self._sampling(sampled_slots, kv_lens[sampled_rows]),
            prompt_chunks=self._prompt_chunks(prefill_slots, starts, query_lens),
        )

    def _attention(
        self,
        num_prefill_rows: int,
        slots_R: np.ndarray,
        query_lens: np.ndarray,
        kv_lens: np.ndarray,
        positions: np.ndarray,
    ) -> AttentionBatch:
        tables, page_size = self.table.block_tables, self._page_size
        num_blocks = -(-kv_lens // page_size)
        indptr = np.zeros(len(slots_R) + 1, np.int64)
        np.cumsum(num_blocks, out=indptr[1:])
        offsets = np.repeat(slots_R * tables.shape[1] - indptr[:-1], num_blocks)
        block_ids = tables.ravel().take(offsets + np.arange(indptr[-1]))
        blocks = tables[np.repeat(slots_R, query_lens), positions // page_size]
        return AttentionBatch(
            num_prefill_rows=num_prefill_rows,
            query_lens=query_lens.astype(np.int32),
            kv_lens=kv_lens.astype(np.int32),
            block_indptr=indptr.astype(np.int32),
            block_ids=block_ids,
            slot_mapping=blocks.astype(np.int64) * page_size + positions % page_size,
            hydragen_groups=self._order.hydragen_groups,
        )

    def _sampling(self, slots_S: np.ndarray, positions_S: np.ndarray) -> SamplingBatch:
        table = self.table
        banned_rows = banned_ids = np.empty(0, np.int64)
        if table.banned_ids:
            num_output_tokens = positions_S - table.num_prompt_tokens[slots_S]
            early = np.flatnonzero(num_output_tokens < table.min_tokens[slots_S]).tolist()
            lists = {row: table.banned_ids.get(int(slots_S[row]), banned_ids) for row in early}
            if lists:
                banned_rows = np.repeat(list(lists), [len(ids) for ids in lists.values()])
                banned_ids = np.concatenate(list(lists.values()))
        return SamplingBatch(
            temperature=table.temperature[slots_S],
            top_k=table.top_k[slots_S],
            top_p=table.top_p[slots_S],
            min_p=table.min_p[slots_S],
            seeds=table.seeds[slots_S],
            positions=positions_S,
            num_top_logprobs=table.num_top_logprobs[slots_S],
            banned_rows=banned_rows,
            banned_ids=banned_ids,
        )

    def _prompt_chunks(
        self, prefill_slots: np.ndarray, starts: np.ndarray, query_lens: np.ndarray
    ) -> list[PromptChunk]:
        table = self.table
        scored = table.num_prompt_logprobs[prefill_slots] >= 0
        chunks = []
        for row in np.flatnonzero(scored).tolist():
            slot, start = int(prefill_slots[row]), int(starts[row])
            length = int(query_lens[row])
            remaining = int(table.num_prompt_tokens[slot]) - start
            if remaining <= 0:
                continue
            chunks.append(
                PromptChunk(
                    slot=slot,
                    first_token=int(query_lens[:row].sum()),
                    start=start,
                    num_tokens=min(length, remaining),
                    num_top_logprobs=int(table.num_prompt_logprobs[slot]),
                    continues=length < remaining,
                )
            )
        return chunks
