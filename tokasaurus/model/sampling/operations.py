"""What sampling does with whole rows of logits, behind one interface: torch on any device, or the
CPU kernels.

Shapes: S rows of logits, V vocabulary, B blocks per row, R selected rows.
"""

from typing import Protocol

import torch

from tokasaurus.model.sampling import draw, logprobs, thresholds, vocabulary_blocks
from tokasaurus.model.sampling.draw import DrawnRows, VocabularySlice
from tokasaurus.model.sampling.thresholds import TruncatedRows


class SamplingOperations(Protocol):
    """Logits are float32 and contiguous, here and below.

    Implementations agree but for rounding in noise, weights and sums.
    """

    def block_maxima(self, logits_SV: torch.Tensor) -> torch.Tensor:
        """As `vocabulary_blocks.block_maxima`."""

    def best_tokens(self, logits_SV: torch.Tensor, maxima_SB: torch.Tensor) -> torch.Tensor:
        """As `vocabulary_blocks.best_tokens`."""

    def mark_broken_rows(
        self, logits_SV: torch.Tensor, maxima_SB: torch.Tensor, tokens_S: torch.Tensor
    ) -> None:
        """Put -1 in place of the tokens of rows whose largest logit is not finite."""

    def log_normalizers(
        self, logits_SV: torch.Tensor, maxima_SB: torch.Tensor, rows_R: torch.Tensor
    ) -> torch.Tensor:
        """float32[R]: log-sum-exp of the given rows; not finite where a row's maximum isn't."""

    def truncation_thresholds(
        self, logits_SV: torch.Tensor, maxima_SB: torch.Tensor, batch: TruncatedRows
    ) -> torch.Tensor:
        """As `thresholds.truncation_thresholds`."""

    def draw_tokens(
        self,
        logits_SV: torch.Tensor,
        maxima_SB: torch.Tensor,
        batch: DrawnRows,
        held: VocabularySlice | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `draw.draw_tokens`."""


class TorchOperations:
    """`SamplingOperations` on any device, and what others are held to."""

    def block_maxima(self, logits_SV: torch.Tensor) -> torch.Tensor:
        return vocabulary_blocks.block_maxima(logits_SV)

    def best_tokens(self, logits_SV: torch.Tensor, maxima_SB: torch.Tensor) -> torch.Tensor:
        return vocabulary_blocks.best_tokens(logits_SV, maxima_SB)

    def mark_broken_rows(
        self, logits_SV: torch.Tensor, maxima_SB: torch.Tensor, tokens_S: torch.Tensor
    ) -> None:
        del logits_SV
        tokens_S.masked_fill_(~maxima_SB.amax(1).isfinite(), -1)

    def log_normalizers(
        self, logits_SV: torch.Tensor, maxima_SB: torch.Tensor, rows_R: torch.Tensor
    ) -> torch.Tensor:
        del maxima_SB
        return logprobs.log_normalizers(logits_SV, rows_R)

    def truncation_thresholds(
        self, logits_SV: torch.Tensor, maxima_SB: torch.Tensor, batch: TruncatedRows
    ) -> torch.Tensor:
        return thresholds.truncation_thresholds(logits_SV, maxima_SB, batch)

    def draw_tokens(
        self,
        logits_SV: torch.Tensor,
        maxima_SB: torch.Tensor,
        batch: DrawnRows,
        held: VocabularySlice | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return draw.draw_tokens(logits_SV, maxima_SB, batch, held)


TORCH_OPERATIONS: SamplingOperations = TorchOperations()
