"""Plans steps: every decoding sequence runs one token, prefill chunks take what budget is left."""

from dataclasses import dataclass

import numpy as np

from tokasaurus.ipc.messages.to_manager import RunnerCapabilities
from tokasaurus.ipc.messages.to_worker import HydragenGroup
from tokasaurus.manager.hydragen import GroupFinder
from tokasaurus.manager.leases import LeasePlanner
from tokasaurus.manager.preemption import Preempter
from tokasaurus.manager.prefill_pacing import PrefillPacer
from tokasaurus.manager.running_set import RunningSet
from tokasaurus.manager.sequence import Sequence
from tokasaurus.manager.settings import ManagerSettings

_NO_SLOTS = np.empty(0, np.intp)
_NO_BLOCKS = np.empty(0, np.int32)


@dataclass(slots=True, kw_only=True)
class PrefillChunk:
    """`num_tokens` of a sequence from token `start` on."""

    sequence: Sequence
    slot: int
    start: int
    num_tokens: int
    is_first: bool
    """The worker hears of the slot with this chunk."""

    @property
    def is_last(self) -> bool:
        """It ends the known tokens."""
        return self.start + self.num_tokens == self.sequence.token_ids.size

    @property
    def samples(self) -> bool:
        """A token is drawn after it."""
        return self.is_last and not self.sequence.request.pooling


@dataclass(slots=True, kw_only=True)
class ScheduledStep:
    """One step as planned. The running set has advanced past it already."""

    chunks: list[PrefillChunk]
    decode_slots: np.ndarray
    """intp[D]"""
    appended_slots: np.ndarray
    """intp[E]: decoding slots that get one more block."""
    appended_blocks: np.ndarray
    """int32[E]"""
    hydragen_groups: list[HydragenGroup]
    num_passes: int = 1
    """Most that the worker may decode; more than 1 only without chunks."""

    @property
    def num_prefill_tokens(self) -> int:
        return sum(chunk.num_tokens for chunk in self.chunks)


class Scheduler:
    """Decides what runs next and advances the running set accordingly."""

    def __init__(
        self,
        settings: ManagerSettings,
        capabilities: RunnerCapabilities,
        running: RunningSet,
        preempter: Preempter,
        pacer: PrefillPacer,
        leases: LeasePlanner,
    ) -> None:
        self._settings = settings
        self._mixes = capabilities.mixed_batches
        self._running = running
        self._preempter = preempter
        self._pacer = pacer
        self._leases = leases
        self._group_finder: GroupFinder | None = None
        if settings.use_hydragen and capabilities.hydragen:
            self._group_finder = GroupFinder(settings, running)
        self._prefilled_last = False
        self._num_steps = 0

    @property
    def hydragen_share(self) -> float:
        """Of the KV tokens that the last decodes attended to, those that groups read once."""
        if self._group_finder is None or not self._running.decode_slots.size:
            return 0.0
        return self._group_finder.share()

    def schedule(self) -> ScheduledStep | None:
        """Plan one step; None when there is nothing to run before more tokens arrive."""
        running = self._running
        if self._settings.debug_preempt_every_steps:
            self._force_preemption()
        step = ScheduledStep(
            chunks=[],
            decode_slots=_NO_SLOTS,
            appended_slots=_NO_SLOTS,
            appended_blocks=_NO_BLOCKS,
            hydragen_groups=[],
        )
        decodes, prefills = self._take_turns()
        if decodes and not self._schedule_decodes(step):
            return None
        if prefills:
            self._schedule_prefills(step)
        if not step.chunks and not step.decode_slots.size:
            return None
        if step.decode_slots.size:
            running.advance_decodes(step.num_passes)
        for chunk in step.chunks:
            if chunk.is_last:
                running.finish_prefill(chunk.sequence)
        self._prefilled_last = bool(step.chunks)
        self._num_steps += 1
        return step

    def _take_turns(self) -> tuple[bool, bool]:
        """Whether the step may hold decodes, and prefills; in turn if they can't mix."""
        self._running.refresh_decode_slots()
        has_decodes = bool(self._running.decode_slots.size)
        has_prefills = bool(self._running.prefilling)
        if self._mixes or not (has_decodes and has_prefills):
            return has_decodes, has_prefills
        return self._prefilled_last, not self._prefilled_last

    def _schedule_decodes(self, step: ScheduledStep) -> bool:
        """Take all decoding sequences into `step`; False if blocks for them have to be awaited."""
        running = self._running
        slots = running.slots
        while True:
            running.refresh_decode_slots()
            decode_slots = running.decode_slots
            is_full = slots.num_scheduled[decode_slots] == slots.capacity[decode_slots]
            growing = decode_slots[is_full]
            if growing.size <= running.blocks.num_available:
                break
            if not self._preempter.make_room():
                return False
        step.num_passes = self._leases.num_passes()
        if step.num_passes > 1:
            self._append_for_passes(step)
        elif growing.size:
            step.appended_slots = growing
            step.appended_blocks = running.append_blocks(growing)
        if self._group_finder is not None:
            step.hydragen_groups = self._group_finder.update(step.num_passes)
        step.decode_slots = running.decode_slots
        return True

    def _append_for_passes(self, step: ScheduledStep) -> None:
        """Blocks for all tokens that the step's passes may write; they are available."""
        running = self._running
        slots, decode_slots = running.slots, running.decode_slots
        num_tokens = slots.num_scheduled[decode_slots] + step.num_passes
        appended = []
        while (growing := decode_slots[num_tokens > slots.capacity[decode_slots]]).size:
            appended.append((growing, running.append_blocks(growing)))
        if appended:
            step.appended_slots = np.concatenate([part[0] for part in appended])
            step.appended_blocks = np.concatenate([part[1] for part in appended])

    def _schedule_prefills(self, step: ScheduledStep) -> None:
        """Fill the budget with chunks, strictly in the order of onboarding.

        A chunk marks the blocks that it fills at once, so that a later one of the step that shares
        them starts behind them.
        """
        running = self._running
        budget = self._pacer.budget_of(running, step.decode_slots.size)
        for slot, sequence in running.prefilling.items():
            if budget <= 0:
                return
            is_first = not sequence.has_started
            if is_first:
                start = running.num_cached_tokens(sequence)
                self._start(sequence, start)
            else:
                start = int(running.slots.num_scheduled[slot])
            num_tokens = min(budget, sequence.token_ids.size - start)
            running.mark_scheduled(sequence, start + num_tokens)
            step.chunks.append(
                PrefillChunk(
                    sequence=sequence,
                    slot=slot,
                    start=start,
                    num_tokens=num_tokens,
                    is_first=is_first,
                )
            )
            budget -= num_tokens

    def _start(self, sequence: Sequence, num_cached: int) -> None:
        sequence.has_started = True
        self._running.slots.num_scheduled[sequence.slot] = num_cached
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = min(num_cached, sequence.num_prompt_tokens)

    def _force_preemption(self) -> None:
        interval = self._settings.debug_preempt_every_steps
        if self._num_steps and self._num_steps % interval == 0:
            self._num_steps += 1
            self._preempter.preempt_newest_decoding()
