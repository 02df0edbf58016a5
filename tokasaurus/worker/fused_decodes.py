"""Steps that only decode, on a CPU whose kernels run them in one call.

What most steps are, and the only ones short enough that what lies between two passes counts.
"""

import numpy as np

from tokasaurus.ipc.messages.to_manager import StepOutput
from tokasaurus.ipc.messages.to_worker import StepInput
from tokasaurus.model.kernels.decode_step import DecodeStep, SlotColumns
from tokasaurus.worker.device_batch import BatchBuilder
from tokasaurus.worker.runner import GoesOn
from tokasaurus.worker.step_sampler import StepSampler

_MAX_CALL_SECONDS = 0.1
"""After so long the process's signal handlers get their turn."""


class FusedDecodes:
    """Looks at the decoding slots when they change; else a step costs one call."""

    def __init__(
        self, decode_step: DecodeStep, builder: BatchBuilder, sampler: StepSampler
    ) -> None:
        self._decode_step = decode_step
        self._builder = builder
        self._sampler = sampler
        self._is_known = False
        """The decoding slots and their parameters are those of the last step that ran here."""
        self._has_ended = False
        """A row of a lease has drawn a stop token, and the manager has not freed any slot since."""

    def run(self, step: StepInput, last_tokens: np.ndarray, goes_on: GoesOn) -> np.ndarray | None:
        """int32[D]: tokens that the step draws, which the next step overwrites, or those of its
        passes, int32[R, D]; None if it is not for the fused kernel. What it changes has been
        applied already.

        `last_tokens` has one int64 per slot. It stays the same array while no slot is added.
        """
        if len(step.freed_slots):
            self._has_ended = False
        if (
            step.decode_slots is not None
            or step.hydragen_groups is not None
            or step.added_slots
            or len(step.freed_slots)
        ):
            self._is_known = False
        if len(step.prefill_slots):
            return None
        if not self._is_known:
            if not self._can_draw():
                return None
            self._look(last_tokens)
        return self._decode_step.run()[0] if step.max_passes == 1 else self._repeat(step, goes_on)

    def _repeat(self, step: StepInput, goes_on: GoesOn) -> np.ndarray:
        """int32[R, D]: tokens of the passes of a lease."""
        slots, stop_tokens = self._builder.decode_slots, self._builder.table.stop_tokens
        at_once = 1
        if goes_on.descriptor is not None and not self._has_ended and goes_on():
            at_once = step.max_passes
            self._decode_step.pause_at(
                stop_tokens.of_any_slot, goes_on.descriptor, _MAX_CALL_SECONDS
            )
        drawn = self._decode_step.run(at_once)
        while True:
            self._has_ended = self._has_ended or stop_tokens.any_end(slots, drawn[-1])
            num_left = step.max_passes - len(drawn)
            if self._has_ended or not num_left or not goes_on():
                return drawn
            before = drawn.copy()
            drawn = np.concatenate([before, self._decode_step.run(min(at_once, num_left))])

    def _can_draw(self) -> bool:
        """Whether some slots decode, and none asks for more than a token."""
        builder, slots = self._builder, self._builder.decode_slots
        return (
            len(slots) > 0
            and int(builder.table.num_top_logprobs[slots].max()) < 0
            and not builder.table.any_bans(slots)
            and not self._sampler.adjusts(slots)
        )

    def _look(self, last_tokens: np.ndarray) -> None:
        builder, table = self._builder, self._builder.table
        groups = [(g.first_row, g.num_rows, g.num_blocks) for g in builder.hydragen_groups]
        self._decode_step.bind(
            SlotColumns(
                block_tables=table.block_tables,
                num_blocks=table.num_blocks,
                kv_lens=table.kv_lens,
                last_tokens=last_tokens,
                temperature=table.temperature,
                top_p=table.top_p,
                min_p=table.min_p,
                top_k=table.top_k,
                seeds=table.seeds,
            )
        )
        self._decode_step.set_rows(builder.decode_slots, np.array(groups, np.int32).reshape(-1, 3))
        self._is_known = True


class DecodedStep:
    """`StepHandle` of a step that has run."""

    __slots__ = ("_step_id", "_token_ids")

    def __init__(self, step_id: int, token_ids: np.ndarray) -> None:
        """`token_ids` must stay what they are until the result has been encoded."""
        self._step_id = step_id
        self._token_ids = token_ids

    def result(self) -> StepOutput:
        return StepOutput(step_id=self._step_id, token_ids=self._token_ids)
