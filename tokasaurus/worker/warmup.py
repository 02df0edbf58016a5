"""Steps that run the largest batches once, so that running out of memory shows at start."""

import numpy as np

from tokasaurus.ipc.messages.to_manager import TokenSampling
from tokasaurus.ipc.messages.to_worker import AddedSlot, StepInput

_MAX_CPU_TOKENS = 512
"""A CPU's memory for activations is small beside its weights, and its time is not."""


def warm_up_steps(
    *, max_tokens: int, max_seqs: int, max_model_len: int, page_size: int, on_cpu: bool
) -> list[StepInput]:
    """The largest prefill, the largest decode, then one sequence alone."""
    if on_cpu:
        max_tokens = min(max_tokens, _MAX_CPU_TOKENS)
        max_seqs = min(max_seqs, _MAX_CPU_TOKENS)
    max_chunk = max(1, max_model_len - 1)
    lens = [min(max_chunk, max_tokens - at) for at in range(0, max_tokens, max_chunk)]
    lens = lens[:max_seqs]
    prefill = _prefill(0, lens, page_size)
    num_rows = min(max_seqs, max_tokens)
    decode = _decode(1, 0, len(lens), num_rows)
    alone = _decode(2, num_rows, num_rows, num_rows + 1)
    return [prefill, decode, alone]


def num_warm_up_blocks(steps: list[StepInput]) -> int:
    """Blocks that the steps name."""
    return 1 + max(int(step.appended_blocks.max(initial=0)) for step in steps)


def _prefill(step_id: int, chunks: list[int], page_size: int) -> StepInput:
    """All chunks in one step; each slot has a block more than it needs, for the decodes."""
    counts = [-(-length // page_size) + 1 for length in chunks]
    slots = np.arange(len(chunks), dtype=np.int32)
    return _step(
        step_id,
        added_slots=[AddedSlot(int(s), 0, chunks[s], TokenSampling()) for s in slots],
        appended_slots=np.repeat(slots, counts),
        appended_blocks=np.arange(sum(counts), dtype=np.int32),
        prefill_slots=slots,
        prefill_lens=np.array(chunks, np.int32),
        prefill_samples=np.ones(len(chunks), bool),
        prefill_ids=np.zeros(sum(chunks), np.int32),
    )


def _decode(step_id: int, first: int, first_new: int, end: int) -> StepInput:
    """Decode slots first..end-1; new ones are empty sequences that all write to block 0."""
    new = np.arange(first_new, end, dtype=np.int32)
    return _step(
        step_id,
        added_slots=[AddedSlot(int(s), 0, 0, TokenSampling()) for s in new],
        appended_slots=new,
        appended_blocks=np.zeros(len(new), np.int32),
        decode_slots=np.arange(first, end, dtype=np.int32),
    )


def _step(
    step_id: int,
    *,
    added_slots: list[AddedSlot] | None = None,
    appended_slots: np.ndarray | None = None,
    appended_blocks: np.ndarray | None = None,
    prefill_slots: np.ndarray | None = None,
    prefill_lens: np.ndarray | None = None,
    prefill_samples: np.ndarray | None = None,
    prefill_ids: np.ndarray | None = None,
    decode_slots: np.ndarray | None = None,
) -> StepInput:
    none = np.empty(0, np.int32)

    def given(array: np.ndarray | None) -> np.ndarray:
        return none if array is None else array

    return StepInput(
        step_id=step_id,
        freed_slots=none,
        added_slots=added_slots or [],
        appended_slots=given(appended_slots),
        appended_blocks=given(appended_blocks),
        prefill_slots=given(prefill_slots),
        prefill_lens=given(prefill_lens),
        prefill_samples=np.empty(0, bool) if prefill_samples is None else prefill_samples,
        prefill_ids=given(prefill_ids),
        decode_slots=none if decode_slots is None else decode_slots,
        hydragen_groups=[],
    )
