"""Log-probabilities of prompt tokens, chunk by chunk, in bounded memory.

A chunk's first token is predicted by the last hidden state of the chunk before it, which is kept.

Shapes: T tokens of the step, D hidden size, C prompt positions scored.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from tokasaurus.ipc.messages.to_manager import PromptLogprobs
from tokasaurus.model.attention.backend import CausalModel
from tokasaurus.model.sampling.logprobs import score_tokens
from tokasaurus.worker.device_batch import PromptChunk


@dataclass(slots=True, kw_only=True)
class PromptScores:
    """`PromptLogprobs` while still on the device."""

    slot: int
    start: int
    logprobs: torch.Tensor
    top_ids: torch.Tensor
    top_logprobs: torch.Tensor

    def message(self) -> PromptLogprobs:
        """Call after the device has finished."""
        return PromptLogprobs(
            slot=self.slot,
            start=self.start,
            logprobs=self.logprobs.numpy(),
            top_ids=self.top_ids.numpy().astype(np.int32),
            top_logprobs=self.top_logprobs.numpy(),
        )


class PromptScorer:
    """Scores the chunks of slots that asked for prompt log-probabilities."""

    def __init__(self, model: CausalModel, max_rows_per_pass: int) -> None:
        self._model = model
        self._max_rows = max_rows_per_pass
        self._last_hidden: dict[int, torch.Tensor] = {}

    def forget(self, slots: Iterable[int]) -> None:
        """Drop what is kept for slots that have been freed or taken by another sequence."""
        for slot in slots:
            self._last_hidden.pop(slot, None)

    def score(
        self, chunk: PromptChunk, hidden_TD: torch.Tensor, ids_T: torch.Tensor
    ) -> PromptScores | None:
        """None when no token of the chunk has a predecessor whose hidden state is known."""
        tokens = slice(chunk.first_token, chunk.first_token + chunk.num_tokens)
        hidden, targets = hidden_TD[tokens], ids_T[tokens]
        before = self._last_hidden.pop(chunk.slot, None)
        if chunk.continues:
            self._last_hidden[chunk.slot] = hidden[-1:].clone()
        if before is None:
            start, sources, targets = chunk.start, hidden[:-1], targets[1:]
        else:
            start, sources = chunk.start - 1, torch.cat([before, hidden[:-1]])
        if len(targets) == 0:
            return None
        parts = [
            score_tokens(self._model.logits(rows), part, chunk.num_top_logprobs)
            for rows, part in zip(
                sources.split(self._max_rows), targets.split(self._max_rows), strict=True
            )
        ]
        logprobs, top_ids, top = (torch.cat(column) for column in zip(*parts, strict=True))
        return PromptScores(
            slot=chunk.slot, start=start, logprobs=logprobs, top_ids=top_ids, top_logprobs=top
        )
