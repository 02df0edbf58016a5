"""What a worker receives: steps. A step says what changed; worker and manager mirror a slot table.

A slot is a sequence's seat in the batch. The worker keeps per slot: sampling parameters, the block
table, the number of tokens whose KV is written or scheduled, and (on the device) the last token.

Shapes: A slots added, F slots freed, E table entries appended, P prefill chunks, T prefill tokens,
D decoding slots, G Hydragen groups.
"""

import msgspec
import numpy as np

from tokasaurus.ipc.messages.to_manager import Pooling, Shutdown, TokenSampling

NO_INTS = np.empty(0, np.int32)
NO_BOOLS = np.empty(0, bool)
"""Fields of steps that are these very objects take no part of the message."""


class AddedSlot(msgspec.Struct, frozen=True, array_like=True):
    """A sequence takes a seat; its block table starts empty and is filled by `appended_*`."""

    slot: int
    num_cached_tokens: int
    """Tokens whose KV is in the table's first blocks already (a multiple of the page size)."""
    num_prompt_tokens: int
    """Length of the original prompt: output token o has position num_prompt_tokens + o."""
    sampling: TokenSampling
    token_ids: np.ndarray | None = None
    """int32: prompt and output so far, cached ones included; None unless the draw depends on them.
    """
    pooling: Pooling = ""
    """If set, the prompt's last chunk gives a vector and no token."""
    stop_token_ids: tuple[int, ...] = ()
    """Passes are not repeated once one of these was drawn."""


class HydragenGroup(msgspec.Struct, frozen=True, array_like=True):
    """Decode rows from first_row, num_rows of them, share their tables' first num_blocks blocks."""

    first_row: int
    num_rows: int
    num_blocks: int


class StepInput(msgspec.Struct, frozen=True, kw_only=True, tag="step", omit_defaults=True):
    """One forward pass. Applied in this order: freed slots, added slots, appended blocks, prefill
    chunks and decodes (whose KV is all written before any attention of the same layer runs)."""

    step_id: int
    freed_slots: np.ndarray = NO_INTS
    """int32[F]"""
    added_slots: list[AddedSlot] = []
    appended_slots: np.ndarray = NO_INTS
    """int32[E]: the slot that entry e goes to; entries of one slot are in table order."""
    appended_blocks: np.ndarray = NO_INTS
    """int32[E]: block ids"""
    prefill_slots: np.ndarray = NO_INTS
    """int32[P]: a slot appears at most once."""
    prefill_lens: np.ndarray = NO_INTS
    """int32[P]: tokens of the chunk; it starts where the slot's KV ends."""
    prefill_samples: np.ndarray = NO_BOOLS
    """bool[P]: the chunk ends the slot's known tokens, so a token is drawn after it."""
    prefill_ids: np.ndarray = NO_INTS
    """int32[T]: the chunks' tokens, concatenated."""
    decode_slots: np.ndarray | None = None
    """int32[D]: slots that run their last drawn token, in order; None: as in the step before."""
    hydragen_groups: list[HydragenGroup] | None = None
    """None: as in the step before; their rows are contiguous and disjoint."""
    max_passes: int = 1
    """Of a step without prefills: a lease. The worker decodes again, up to so many passes in all,
    until a row has drawn one of its stop tokens or none, or another step that frees or adds slots
    or prefills, or the end, has come."""

    @property
    def changes_batch(self) -> bool:
        """It does more than decode on: what decodes before it should make way."""
        return bool(len(self.prefill_slots) or self.added_slots or len(self.freed_slots))


ToWorker = StepInput | Shutdown
