"""Turns planned steps into `StepInput`s that hold only what changed, and remembers their rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tokasaurus.ipc.messages.to_worker import (
    NO_INTS,
    AddedSlot,
    HydragenGroup,
    StepInput,
)
from tokasaurus.manager.running_set import RunningSet
from tokasaurus.manager.scheduler import PrefillChunk, ScheduledStep


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInFlight:
    """A step that the worker has: whose tokens its output rows are."""

    step_id: int
    row_slots: np.ndarray
    """intp[S]"""
    row_epochs: np.ndarray
    """int64[S]: a row counts only if its slot still has this epoch."""
    num_releases: int
    """Of the running set when it was planned: no epoch changed while that is the same."""
    scored_epochs: dict[int, int]
    """Epoch by slot of the chunks that report prompt log-probabilities."""
    embedded_epochs: dict[int, int]
    """Epoch by slot of the chunks that end with a vector."""
    max_passes: int
    only_decodes: bool


class StepBuilder:
    """Writes the deltas between the worker's slot table and the running set."""

    def __init__(self, running: RunningSet) -> None:
        self._running = running
        self._sent_decode_slots: np.ndarray = np.empty(0, np.intp)
        self._sent_groups: list[HydragenGroup] = []
        self._num_steps = 0

    def build(self, step: ScheduledStep) -> tuple[StepInput, StepInFlight]:
        running = self._running
        freed, running.freed_slots = running.freed_slots, []
        appended_slots, appended_blocks = self._appended(step)
        decode_slots = step.decode_slots
        is_new_order = decode_slots is not self._sent_decode_slots and not np.array_equal(
            decode_slots, self._sent_decode_slots
        )
        self._sent_decode_slots = decode_slots
        # Groups count rows, so a new order always comes with its groups.
        groups = step.hydragen_groups
        are_new_groups = groups != self._sent_groups or (is_new_order and bool(groups))
        self._sent_groups = groups
        step_input = StepInput(
            step_id=self._num_steps,
            freed_slots=np.array(freed, np.int32) if freed else NO_INTS,
            appended_slots=appended_slots,
            appended_blocks=appended_blocks,
            decode_slots=decode_slots.astype(np.int32) if is_new_order else None,
            hydragen_groups=groups if are_new_groups else None,
            max_passes=step.num_passes,
            **(_prefill_fields(step.chunks) if step.chunks else {}),
        )
        in_flight = self._in_flight(step)
        self._num_steps += 1
        return step_input, in_flight

    def _appended(self, step: ScheduledStep) -> tuple[np.ndarray, np.ndarray]:
        """Tables of the new slots, then the decodes' new blocks."""
        if not step.chunks and not step.appended_slots.size:
            return NO_INTS, NO_INTS
        new = [chunk.slot for chunk in step.chunks if chunk.is_first]
        appended_slots = step.appended_slots.astype(np.int32)
        if not new:
            return appended_slots, step.appended_blocks
        tables = [self._running.slots.blocks(slot) for slot in new]
        slots = np.repeat(np.array(new, np.int32), [table.size for table in tables])
        return (
            np.concatenate([slots, appended_slots]),
            np.concatenate([*tables, step.appended_blocks]),
        )

    def _in_flight(self, step: ScheduledStep) -> StepInFlight:
        epochs = self._running.slots.epochs
        row_slots = step.decode_slots
        scored_epochs: dict[int, int] = {}
        embedded_epochs: dict[int, int] = {}
        if step.chunks:
            sampling = [chunk.slot for chunk in step.chunks if chunk.samples]
            if sampling:
                row_slots = np.concatenate([np.array(sampling, np.intp), row_slots])
            for chunk in step.chunks:
                request = chunk.sequence.request
                if request.sampling.num_prompt_logprobs >= 0:
                    scored_epochs[chunk.slot] = epochs.item(chunk.slot)
                if chunk.is_last and request.pooling:
                    embedded_epochs[chunk.slot] = epochs.item(chunk.slot)
        return StepInFlight(
            step_id=self._num_steps,
            row_slots=row_slots,
            row_epochs=epochs[row_slots],
            num_releases=self._running.num_releases,
            scored_epochs=scored_epochs,
            embedded_epochs=embedded_epochs,
            max_passes=step.num_passes,
            only_decodes=not step.chunks,
        )


def _prefill_fields(chunks: list[PrefillChunk]) -> dict[str, Any]:
    """What a step with prefills has beside decodes."""
    token_ids = [c.sequence.token_ids[c.start : c.start + c.num_tokens] for c in chunks]
    return {
        "added_slots": [_added_slot(chunk) for chunk in chunks if chunk.is_first],
        "prefill_slots": np.array([c.slot for c in chunks], np.int32),
        "prefill_lens": np.array([c.num_tokens for c in chunks], np.int32),
        "prefill_samples": np.array([c.samples for c in chunks], bool),
        "prefill_ids": np.concatenate(token_ids, dtype=np.int32),
    }


def _added_slot(chunk: PrefillChunk) -> AddedSlot:
    sequence = chunk.sequence
    sampling = sequence.request.sampling
    return AddedSlot(
        slot=chunk.slot,
        num_cached_tokens=chunk.start,
        num_prompt_tokens=sequence.num_prompt_tokens,
        sampling=sampling,
        token_ids=sequence.token_ids if sampling.depends_on_tokens else None,
        pooling=sequence.request.pooling,
        stop_token_ids=sequence.request.stop_token_ids,
    )
