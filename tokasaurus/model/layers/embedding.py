"""Token embedding and language-model head, which may share one weight.

Over several tensor-parallel ranks each holds a range of the vocabulary.

Shapes: T tokens, S sampled rows, D hidden size, V vocabulary, L rows of this rank's weight.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from tokasaurus.model.config import TensorSpec
from tokasaurus.model.divided_tokens import DividedTokens
from tokasaurus.model.layers.linear import Linear
from tokasaurus.model.layers.loading import LoadableLayer
from tokasaurus.model.layers.sharding import VocabularyShare
from tokasaurus.model.weights.tensors import CheckpointTensor


class Embedding(LoadableLayer):
    """Token ids to vectors."""

    def __init__(self, vocab_size: int, hidden_size: int, tensors: TensorSpec) -> None:
        super().__init__()
        self.share = VocabularyShare.of(vocab_size, tensors.parallel)
        self.weight = tensors.empty(self.share.num_rows, hidden_size)
        self._parallel = tensors.parallel
        self._rows: Callable[[torch.Tensor], torch.Tensor] | None = None

    def load(self, part: str, parameter: str, source: CheckpointTensor) -> None:
        assert part == "", f"an embedding has no part {part}"
        _load_share(self.share, self.parameter(parameter), source)

    def read_rows_with(self, rows: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """From now on `rows(ids_T)` gives the vectors, and the weight is not read any more."""
        self._rows = rows

    def forward(self, ids_T: torch.Tensor, divided: DividedTokens | None = None) -> torch.Tensor:
        """Of all tokens, or with `divided` of this rank's."""
        if self._parallel.tp_size == 1:
            return self._look_up(ids_T)
        ids_T = ids_T - self.share.start
        is_elsewhere_T = (ids_T < 0) | (ids_T >= self.share.num_tokens)
        x_TD = self._look_up(ids_T.masked_fill(is_elsewhere_T, 0))
        x_TD.masked_fill_(is_elsewhere_T.unsqueeze(1), 0)
        return self._parallel.all_reduce(x_TD) if divided is None else divided.sum(x_TD)

    def _look_up(self, ids_T: torch.Tensor) -> torch.Tensor:
        if self._rows is not None:
            return self._rows(ids_T)
        return F.embedding(ids_T, self.weight)


class Head(Linear):
    """Hidden states SD to float32 logits of this rank's tokens; `tied` shares its weight."""

    def __init__(
        self, vocab_size: int, hidden_size: int, tensors: TensorSpec, tied: Embedding | None
    ) -> None:
        self.share = VocabularyShare.of(vocab_size, tensors.parallel)
        super().__init__(
            hidden_size,
            self.share.num_rows,
            tensors,
            bias=False,
            weight=None if tied is None else tied.weight,
        )
        self.is_tied = tied is not None
        self._parallel = tensors.parallel

    def load(self, part: str, parameter: str, source: CheckpointTensor) -> None:
        assert part == "", f"a head has no part {part}"
        _load_share(self.share, self.parameter(parameter), source)

    def parameter_names(self) -> list[str]:
        return [] if self.is_tied else super().parameter_names()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """SL: -inf at padding."""
        logits_SL = super().forward(x).float()
        if self.share.num_tokens < self.share.num_rows:
            logits_SL[:, self.share.num_tokens :] = -torch.inf
        return logits_SL

    def whole(self, logits_SL: torch.Tensor) -> torch.Tensor:
        """The logits of the whole vocabulary, SV, from every rank's."""
        parts = self._parallel.tp.all_gather(logits_SL)
        return parts[0] if len(parts) == 1 else self.share.join(parts)


def _load_share(share: VocabularyShare, target: torch.Tensor, source: CheckpointTensor) -> None:
    """Fill this rank's weight; padding is zero."""
    source.expect_shape((share.vocab_size, *target.shape[1:]))
    source.copy_to(target, slice(share.start, share.start + share.num_tokens))
    target[share.num_tokens :].zero_()
