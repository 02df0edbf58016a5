"""Sampling by the CPU kernels.

Shapes: S rows of logits, V vocabulary, B blocks per row, R selected rows.
"""

import torch

from tokasaurus.model.kernels.loader import Kernels
from tokasaurus.model.sampling.draw import DrawnRows, VocabularySlice
from tokasaurus.model.sampling.thresholds import TruncatedRows


class KernelOperations:
    """`SamplingOperations` on a CPU."""

    def __init__(self, kernels: Kernels) -> None:
        self._ops = kernels.ops

    def block_maxima(self, logits_SV: torch.Tensor) -> torch.Tensor:
        return self._ops.block_maxima(logits_SV)

    def best_tokens(self, logits_SV: torch.Tensor, maxima_SB: torch.Tensor) -> torch.Tensor:
        return self._ops.best_tokens(logits_SV, maxima_SB)

    def mark_broken_rows(
        self, logits_SV: torch.Tensor, maxima_SB: torch.Tensor, tokens_S: torch.Tensor
    ) -> None:
        self._ops.mark_broken_rows(logits_SV, maxima_SB, tokens_S)

    def log_normalizers(
        self, logits_SV: torch.Tensor, maxima_SB: torch.Tensor, rows_R: torch.Tensor
    ) -> torch.Tensor:
        return self._ops.log_normalizers(logits_SV, maxima_SB, rows_R)

    def truncation_thresholds(
        self, logits_SV: torch.Tensor, maxima_SB: torch.Tensor, batch: TruncatedRows
    ) -> torch.Tensor:
        return self._ops.truncation_thresholds(
            logits_SV, maxima_SB, batch.rows, batch.temperature, batch.top_k, batch.top_p
        )

    def draw_tokens(
        self,
        logits_SV: torch.Tensor,
        maxima_SB: torch.Tensor,
        batch: DrawnRows,
        held: VocabularySlice | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        held = held or VocabularySlice(logits_SV.shape[1])
        return self._ops.draw_tokens(
            logits_SV,
            maxima_SB,
            batch.rows,
            batch.keys,
            batch.temperature,
            batch.peak,
            batch.threshold,
            held.vocab_size,
            held.first_block,
        )
