"""Token embedding and language-model head, which may share one weight.

Shapes: T tokens, S sampled rows, D hidden size, V vocabulary.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from tokasaurus.model.config import TensorSpec
from tokasaurus.model.layers.linear import Linear
from tokasaurus.model.layers.loading import LoadableLayer


class Embedding(LoadableLayer):
    """Token ids to vectors."""

    def __init__(self, vocab_size: int, hidden_size: int, tensors: TensorSpec) -> None:
        super().__init__()
        self.weight = tensors.empty(vocab_size, hidden_size)
        self._rows: Callable[[torch.Tensor], torch.Tensor] | None = None

    def read_rows_with(self, rows: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """From now on `rows(ids_T)` gives the vectors, and the weight is not read any more."""
        self._rows = rows

    def forward(self, ids_T: torch.Tensor) -> torch.Tensor:
        if self._rows is not None:
            return self._rows(ids_T)
        return F.embedding(ids_T, self.weight)


class Head(Linear):
    """Hidden states SD to float32 logits SV; `tied` shares the embedding's weight."""

    def __init__(
        self, vocab_size: int, hidden_size: int, tensors: TensorSpec, tied: Embedding | None
    ) -> None:
        super().__init__(
            hidden_size,
            vocab_size,
            tensors,
            bias=False,
            weight=None if tied is None else tied.weight,
        )
        self.is_tied = tied is not None

    def parameter_names(self) -> list[str]:
        return [] if self.is_tied else super().parameter_names()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).float()
