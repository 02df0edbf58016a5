"""What becomes of a step's final hidden states: drawn tokens, scores of prompts, their vectors.

Shapes: T tokens of the step, D hidden size, S rows that sample, V vocabulary.
"""

from collections.abc import Callable

import numpy as np
import torch

from tokasaurus.ipc.messages.to_worker import StepInput
from tokasaurus.model.attention.backend import CausalModel
from tokasaurus.model.decoder import Decoder
from tokasaurus.model.device_copy import to_device
from tokasaurus.model.sampling.operations import TORCH_OPERATIONS, SamplingOperations
from tokasaurus.model.sampling.sampler import SampledTokens, SamplingBatch, sample
from tokasaurus.model.sampling.sharded import sample_sharded
from tokasaurus.worker.device_batch import DeviceBatch
from tokasaurus.worker.grammar_tokens import GrammarTokens
from tokasaurus.worker.prompt_pooling import PooledPrompts, PromptPooler
from tokasaurus.worker.prompt_scoring import PromptScorer, PromptScores
from tokasaurus.worker.slot_adjustments import SlotAdjustments
from tokasaurus.worker.slot_grammars import SlotGrammars

_MAX_LOGITS_BYTES = 64 << 20
"""Logits of one pass: more rows are sampled pass by pass."""


class StepSampler:
    """Keeps what draws depend on from step to step. All tensor-parallel ranks of the last stage
    have one and draw the same tokens; grammars are followed on the rank that decides."""

    def __init__(
        self,
        model: CausalModel,
        device: torch.device,
        load_grammar_tokens: Callable[[], GrammarTokens],
        operations: SamplingOperations = TORCH_OPERATIONS,
    ) -> None:
        self._model = model
        self._device = device
        self._operations = operations
        self._sharded: Decoder | None = None
        if isinstance(model, Decoder) and model.parallel.tp_size > 1:
            self._sharded = model
        self._decides = self._sharded is None or self._sharded.parallel.tp_rank == 0
        self._adjustments = SlotAdjustments(device, model.vocab_size)
        self._grammars = SlotGrammars(load_grammar_tokens)
        self.max_logits_rows = max(1, _MAX_LOGITS_BYTES // (4 * model.vocab_size))
        self._prompt_scorer = PromptScorer(model, self.max_logits_rows)
        self._prompt_pooler = PromptPooler()

    def apply(self, step: StepInput) -> None:
        """Free and add, in this order."""
        if step.added_slots or len(step.freed_slots):
            self._take_over(step)

    @torch.inference_mode()
    def _take_over(self, step: StepInput) -> None:
        self._adjustments.apply(step)
        if self._decides:
            self._grammars.apply(step)
        self._prompt_scorer.forget(step.freed_slots.tolist())
        self._prompt_scorer.forget(added.slot for added in step.added_slots)
        self._prompt_pooler.apply(step)

    def adjusts(self, slots: np.ndarray) -> bool:
        """Whether one of the slots has penalties, biases, bans or a grammar."""
        return self._adjustments.of_rows(slots) is not None

    def score_prompts(
        self, batch: DeviceBatch, hidden_TD: torch.Tensor, prefill_ids: torch.Tensor
    ) -> list[PromptScores]:
        """Of the chunks whose slots ask for it."""
        scores = [
            self._prompt_scorer.score(chunk, hidden_TD, prefill_ids)
            for chunk in batch.prompt_chunks
        ]
        return [some for some in scores if some is not None]

    def pool_prompts(self, step: StepInput, hidden_TD: torch.Tensor) -> PooledPrompts | None:
        """Vectors of the prompts that end with the step, if any do."""
        return self._prompt_pooler.pool(step, hidden_TD)

    def sample(
        self,
        hidden_TD: torch.Tensor,
        batch: DeviceBatch,
        draw: Callable[[SamplingBatch], torch.Tensor | None] = lambda _batch: None,
    ) -> SampledTokens:
        """A token for each of the step's output rows.

        `draw` may know a shorter way for a batch in which nothing is adjusted.
        """
        rows = batch.sampled_tokens
        adjusted = batch.sampling.adjusted = self._adjustments.of_rows(batch.sampled_slots)
        adjusted_slots = [] if adjusted is None else batch.sampled_slots[adjusted.rows].tolist()
        drawn = draw(batch.sampling)
        if drawn is not None:
            return SampledTokens(token_ids=drawn)
        if adjusted is not None and self._decides:
            adjusted.masks, must_end = self._grammars.masks(adjusted_slots)
            batch.sampling.lift_bans(adjusted.rows[must_end])
        everything = len(rows) == len(hidden_TD)
        hidden_SD = hidden_TD if everything else hidden_TD[to_device(rows, self._device)]
        parts = []
        for start in range(0, len(rows), self.max_logits_rows):
            which = slice(start, min(start + self.max_logits_rows, len(rows)))
            params = batch.sampling if which == slice(0, len(rows)) else batch.sampling.rows(which)
            parts.append(self._sample_rows(hidden_SD[which], params))
        sampled = SampledTokens.join(parts)
        if adjusted is not None:
            self._adjustments.record(adjusted, sampled.token_ids.clamp_min(0))
            if self._decides:
                self._grammars.record(adjusted_slots, sampled.token_ids, adjusted.rows)
        return sampled

    def _sample_rows(self, hidden_SD: torch.Tensor, params: SamplingBatch) -> SampledTokens:
        model = self._sharded
        if model is None:
            return sample(self._model.logits(hidden_SD), params, self._operations)
        assert model.head is not None, "the last stage has the head"
        return sample_sharded(
            model.shard_logits(hidden_SD),
            params,
            model.head.share,
            model.parallel.tp,
            self._operations,
        )
