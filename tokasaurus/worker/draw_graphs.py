"""Draws of decode steps as captured graphs, behind the graphs that give the hidden states.

For batches in which no row asks for more than temperature and min-p: the language-model head and
the draw are then a launch, too.

Shapes: S rows, D hidden size, V vocabulary.
"""

from collections.abc import Callable

import numpy as np
import torch

from tokasaurus.model.attention.backend import CausalModel
from tokasaurus.model.device_copy import pinned
from tokasaurus.model.sampling.dense_draw import Draw, mark_rows
from tokasaurus.model.sampling.noise import noise_keys
from tokasaurus.model.sampling.sampler import MAX_TEMPERATURE, SamplingBatch
from tokasaurus.model.sampling.vocabulary_blocks import best_tokens, block_maxima
from tokasaurus.worker.cuda_graphs import Capturer


def is_plain(batch: SamplingBatch, vocab_size: int) -> bool:
    """Whether a graph draws the batch as it asks."""
    keeps_all = (batch.top_k <= 0) | (batch.top_k >= vocab_size)
    random = batch.is_random
    return (
        batch.adjusted is None
        and not len(batch.banned_ids)
        and not (batch.num_top_logprobs >= 0).any()
        and bool((keeps_all & (batch.top_p >= 1))[random].all())
    )


class DrawGraphs:
    """Graphs from hidden states to tokens, one per size."""

    def __init__(
        self, model: CausalModel, max_size: int, *, device: torch.device, draw: Draw
    ) -> None:
        self._model = model
        self._device = device
        self._draw = draw
        self._keys_S2 = torch.zeros(max_size, 2, dtype=torch.int64, device=device)
        self._temperature_S = torch.zeros(max_size, device=device)
        """0 where the row is greedy."""
        self._threshold_S = torch.full((max_size,), -torch.inf, device=device)
        self._graphs: dict[int, tuple[Callable[[], None], torch.Tensor]] = {}

    def capture(self, size: int, hidden_SD: torch.Tensor, capturer: Capturer) -> None:
        """`hidden_SD` is where the hidden states will be."""
        self._graphs[size] = capturer.capture(lambda: self._run(size, hidden_SD))

    def run(self, size: int, batch: SamplingBatch) -> torch.Tensor:
        """int64[S] tokens as `SampledTokens` has them; the next run overwrites them."""
        S = len(batch.temperature)
        keys = noise_keys(batch.seeds, batch.positions)
        temperature = np.where(batch.is_random, batch.temperature, 0).clip(0, MAX_TEMPERATURE)
        with np.errstate(divide="ignore"):
            threshold = np.log(batch.min_p)
        for buffer, array in (
            (self._keys_S2, keys),
            (self._temperature_S, temperature.astype(np.float32)),
            (self._threshold_S, threshold.astype(np.float32)),
        ):
            buffer[:S].copy_(pinned(array, self._device), non_blocking=True)
        replay, tokens_S = self._graphs[size]
        replay()
        return tokens_S[:S]

    def _run(self, size: int, hidden_SD: torch.Tensor) -> torch.Tensor:
        logits_SV = self._model.logits(hidden_SD)
        maxima_SB = block_maxima(logits_SV)
        peak_S = maxima_SB.amax(1)
        is_random = self._temperature_S[:size] > 0
        rows = (
            logits_SV,
            self._keys_S2[:size],
            self._temperature_S[:size].where(is_random, 1.0),
            peak_S,
            self._threshold_S[:size],
        )
        mark_rows(*rows)
        drawn_S, _ = self._draw(*rows, logits_SV.shape[1], 0)
        tokens_S = torch.where(is_random, drawn_S, best_tokens(logits_SV, maxima_SB))
        return tokens_S.masked_fill(~peak_S.isfinite(), -1)
