"""Splits a step into micro-batches, so that all stages of a pipeline have work at once.

A sequence decodes in the same micro-batch of every step: while later stages compute one micro-batch
of a step, the first stage runs the others, and when it comes to the next step the tokens of its
first micro-batch are back. Prefill chunks are dealt out in order, and long ones cut, so that all
micro-batches have about the same number of tokens; a chunk may read blocks that an earlier row of
its step fills, so the order of rows is never changed.

Shapes: P prefill chunks, D decodes, S output rows.
"""

from dataclasses import dataclass, field

import msgspec
import numpy as np

from tokasaurus.ipc.messages.to_worker import HydragenGroup, StepInput
from tokasaurus.worker.device_batch import DecodeOrder

_MIN_PIECE_TOKENS = 32
"""Chunks are not cut into smaller pieces than this."""
_FIRST_CAPACITY = 64
_NONE = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A step of its own; `rows` (int64) are the places of its output rows in the whole step's,
    None if they are the same."""

    step: StepInput
    rows: np.ndarray | None = None


@dataclass(slots=True)
class _Piece:
    """A part of a prefill chunk: which chunk, its tokens among the step's, whether it samples."""

    chunk: int
    first_token: int
    num_tokens: int
    samples: bool


@dataclass(slots=True)
class _Part:
    pieces: list[_Piece] = field(default_factory=list)
    num_tokens: int = 0


class MicroBatcher:
    """Every stage splits the same steps in the same way. One part: steps stay as they are."""

    def __init__(self, num_parts: int) -> None:
        self._num_parts = num_parts
        self._order = DecodeOrder()
        self._part_of_slot = np.full(_FIRST_CAPACITY, -1, np.int64)
        self._num_slots = np.zeros(num_parts, np.int64)

    def split(self, step: StepInput) -> list[MicroBatch]:
        """Micro-batches with rows, in the order in which they are to run; at least one."""
        if self._num_parts == 1:
            return [MicroBatch(step)]
        self._order.update(step)
        self._forget(step.freed_slots)
        if step.added_slots:
            self._forget(np.array([added.slot for added in step.added_slots]))
        decode_parts = self._decode_parts()
        loads = np.bincount(decode_parts, minlength=self._num_parts)
        prefill_parts = self._deal_out(step, loads)
        batches: list[MicroBatch] = []
        for part in range(self._num_parts):
            decodes = np.flatnonzero(decode_parts == part)
            if len(decodes) or prefill_parts[part].pieces:
                batches.append(self._micro_batch(step, prefill_parts[part], decodes, not batches))
        return batches or [MicroBatch(step)]

    def _forget(self, slots: np.ndarray) -> None:
        missing = int(slots.max(initial=-1)) + 1 - len(self._part_of_slot)
        if missing > 0:
            extra = np.full(max(missing, len(self._part_of_slot)), -1, np.int64)
            self._part_of_slot = np.concatenate([self._part_of_slot, extra])
        parts = self._part_of_slot[slots]
        self._num_slots -= np.bincount(parts[parts >= 0], minlength=self._num_parts)
        self._part_of_slot[slots] = -1

    def _seat(self, slot: int, first_part: int) -> None:
        """Put a slot into the emptiest part, from the one on in which its last chunk runs: its
        first token is then back in time."""
        part = first_part + int(self._num_slots[first_part:].argmin())
        self._part_of_slot[slot] = part
        self._num_slots[part] += 1

    def _decode_parts(self) -> np.ndarray:
        slots = self._order.slots
        for slot in slots[self._part_of_slot[slots] < 0].tolist():
            self._seat(slot, 0)
        return self._part_of_slot[slots]

    def _deal_out(self, step: StepInput, loads: np.ndarray) -> list[_Part]:
        parts = [_Part(num_tokens=int(load)) for load in loads]
        target = -(-(int(loads.sum()) + len(step.prefill_ids)) // self._num_parts)
        current = first_token = 0
        for chunk, length in enumerate(step.prefill_lens.tolist()):
            end = first_token + length
            while first_token < end:
                num_left, is_last = end - first_token, current == self._num_parts - 1
                room = target - parts[current].num_tokens
                count = num_left if is_last or num_left < room + _MIN_PIECE_TOKENS else room
                if count < min(_MIN_PIECE_TOKENS, num_left):
                    current += 1
                    continue
                samples = bool(step.prefill_samples[chunk]) and count == num_left
                parts[current].pieces.append(_Piece(chunk, first_token, count, samples))
                parts[current].num_tokens += count
                first_token += count
                slot = int(step.prefill_slots[chunk])
                if samples and self._part_of_slot[slot] < 0:
                    self._seat(slot, current)
        return parts

    def _micro_batch(
        self, step: StepInput, part: _Part, decodes: np.ndarray, is_first: bool
    ) -> MicroBatch:
        """The first one of a step carries all changes."""
        pieces = part.pieces
        chunks = np.array([piece.chunk for piece in pieces], np.int64)
        samples = np.array([piece.samples for piece in pieces], bool)
        ids = [step.prefill_ids[p.first_token : p.first_token + p.num_tokens] for p in pieces]
        micro_step = StepInput(
            step_id=step.step_id,
            freed_slots=step.freed_slots if is_first else _NONE,
            added_slots=step.added_slots if is_first else [],
            appended_slots=step.appended_slots if is_first else _NONE,
            appended_blocks=step.appended_blocks if is_first else _NONE,
            prefill_slots=step.prefill_slots[chunks],
            prefill_lens=np.array([piece.num_tokens for piece in pieces], np.int32),
            prefill_samples=samples,
            prefill_ids=np.concatenate(ids) if ids else _NONE,
            decode_slots=self._order.slots[decodes].astype(np.int32),
            hydragen_groups=self._groups(decodes),
        )
        row_of_chunk = np.cumsum(step.prefill_samples) - 1
        num_sampling = int(np.count_nonzero(step.prefill_samples))
        rows = np.concatenate([row_of_chunk[chunks[samples]], num_sampling + decodes])
        return MicroBatch(micro_step, rows.astype(np.int64))

    def _groups(self, decodes: np.ndarray) -> list[HydragenGroup]:
        """The step's groups as far as these decode rows (ascending) belong to them."""
        groups = []
        for group in self._order.hydragen_groups:
            end = group.first_row + group.num_rows
            first, last = np.searchsorted(decodes, [group.first_row, end]).tolist()
            if last - first > 1:
                groups.append(
                    msgspec.structs.replace(group, first_row=first, num_rows=last - first)
                )
        return groups
