"""A mixture of experts: each token goes through the few MLPs that a router chooses for it.

Tensor-parallel ranks hold a range of the experts each: every rank routes all tokens, computes what
falls to its experts, and the ranks add up.

Shapes: T tokens, D hidden size, E experts of this rank, I intermediate size, K experts per token,
R = T * K choices.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from tokasaurus.errors import ConfigError
from tokasaurus.model.config import DecoderSpec, TensorSpec
from tokasaurus.model.divided_tokens import DividedTokens
from tokasaurus.model.layers.activation import ACTIVATIONS
from tokasaurus.model.layers.grouped_linear import GroupedLinear
from tokasaurus.model.layers.linear import Linear
from tokasaurus.model.layers.loading import LoadableLayer
from tokasaurus.model.parallel import ParallelContext
from tokasaurus.model.weights.tensors import CheckpointTensor


def held_experts(num_experts: int, parallel: ParallelContext) -> range:
    """This rank's experts. Raises ConfigError when a rank would have none."""
    if parallel.tp_size > num_experts:
        raise ConfigError(
            f"{num_experts} experts can't be divided by tp_size={parallel.tp_size}; choose a "
            f"tp_size of at most {num_experts}, or use pp_size or dp_size."
        )
    first, end = (
        rank * num_experts // parallel.tp_size for rank in (parallel.tp_rank, parallel.tp_rank + 1)
    )
    return range(first, end)


def choose_experts(
    logits_T: torch.Tensor, num_choices: int, *, normalize: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (float32) and indices of each token's experts, both TK, best first.

    Weights are the softmax over all experts, or with `normalize` over the chosen ones.
    """
    probabilities = torch.softmax(logits_T, dim=-1, dtype=torch.float32)
    weights_TK, experts_TK = torch.topk(probabilities, num_choices, dim=-1)
    if normalize:
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    return weights_TK, experts_TK


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Choices sorted by expert, and where each one went.

    Sorting is stable and `combine` adds a token's outputs in the order of its choices, so what
    becomes of a token does not depend on the other tokens of the batch.
    """

    tokens_R: torch.Tensor
    """The token of each sorted row."""
    rows_TK: torch.Tensor
    """The sorted row of each choice."""
    ends_E: torch.Tensor
    """int32: the row at which each expert's rows end."""
    is_elsewhere_R1: torch.Tensor | None
    """Rows, all behind the last end, whose experts other ranks hold; None if none are held there"""

    @classmethod
    def by_expert(cls, experts_TK: torch.Tensor, held: range, num_experts: int) -> "Dispatch":
        """`held` are this rank's experts. Needs nothing on the host."""
        num_choices = experts_TK.shape[1]
        is_divided = len(held) < num_experts
        choices_R = experts_TK.flatten()
        if is_divided:
            choices_R = choices_R - held.start
            is_foreign_R = (choices_R < 0) | (choices_R >= len(held))
            choices_R = choices_R.masked_fill(is_foreign_R, len(held))
        sorted_R, order_R = choices_R.sort(stable=True)
        indices_R = torch.arange(len(order_R), device=order_R.device)
        rows_R = torch.empty_like(order_R).scatter_(0, order_R, indices_R)
        experts_E = torch.arange(len(held), device=order_R.device)
        return cls(
            tokens_R=order_R // num_choices,
            rows_TK=rows_R.view(experts_TK.shape),
            ends_E=torch.searchsorted(sorted_R, experts_E, right=True, out_int32=True),
            is_elsewhere_R1=(sorted_R == len(held)).unsqueeze(1) if is_divided else None,
        )

    def combine(self, y_RD: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        """Each token's weighted sum over its choices on this rank, TD: a weighted bag of rows."""
        if self.is_elsewhere_R1 is not None:
            y_RD = y_RD.masked_fill(self.is_elsewhere_R1, 0.0)
        return F.embedding_bag(
            self.rows_TK, y_RD, mode="sum", per_sample_weights=weights_TK.to(y_RD.dtype)
        )


class Experts(LoadableLayer):
    """down(activation(gate(x)) * up(x)) with the weights of each row's expert.

    Its two layers load a tensor per expert; the layer itself loads tensors with all experts.
    """

    def __init__(self, spec: DecoderSpec, held: range, tensors: TensorSpec) -> None:
        super().__init__()
        assert spec.moe is not None, "the spec has no experts"
        num_experts, size = spec.moe.num_experts, spec.moe.intermediate_size
        self.gate_up = GroupedLinear(held, num_experts, spec.hidden_size, 2 * size, tensors)
        self.down = GroupedLinear(held, num_experts, size, spec.hidden_size, tensors)
        self.activation = ACTIVATIONS[spec.activation]

    def parameter_names(self) -> list[str]:
        return ["gate_up_proj", "down_proj"]

    def load(self, part: str, parameter: str, source: CheckpointTensor) -> None:
        assert part == "", f"experts have no part {part}"
        layer = {"gate_up_proj": self.gate_up, "down_proj": self.down}[parameter]
        layer.load("all", "weight", source)

    def forward(self, x_RD: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
        gate_RI, up_RI = self.gate_up(x_RD, ends_E).chunk(2, dim=-1)
        return self.down(self.activation(gate_RI) * up_RI, ends_E)


class MixtureOfExperts(nn.Module):
    """Routed experts, and beside them perhaps a shared one that sees every token."""

    def __init__(self, spec: DecoderSpec, tensors: TensorSpec, shared: nn.Module | None) -> None:
        """`shared`: the MLP behind a sigmoid gate, where the spec has one; it leaves the sum over
        the ranks to this layer, which needs one for all its experts."""
        super().__init__()
        assert spec.moe is not None, "the spec has no experts"
        self.spec = spec.moe
        self.held = held_experts(spec.moe.num_experts, tensors.parallel)
        self.router = Linear(spec.hidden_size, spec.moe.num_experts, tensors, bias=False)
        self.experts = Experts(spec, self.held, tensors)
        self._parallel = tensors.parallel
        self.has_shared = shared is not None
        if shared is not None:
            self.shared = shared
            self.shared_gate = Linear(spec.hidden_size, 1, tensors, bias=False)

    def forward(self, x_TD: torch.Tensor, divided: DividedTokens | None = None) -> torch.Tensor:
        """Of all tokens; with `divided`, from and to this rank's."""
        if divided is not None:
            x_TD = divided.whole(x_TD)
        weights_TK, experts_TK = choose_experts(
            self.router(x_TD),
            self.spec.num_experts_per_token,
            normalize=self.spec.normalize_weights,
        )
        dispatch = Dispatch.by_expert(experts_TK, self.held, self.spec.num_experts)
        y_RD = self.experts(x_TD[dispatch.tokens_R], dispatch.ends_E)
        mine_TD = dispatch.combine(y_RD, weights_TK)
        if self.has_shared:
            mine_TD = mine_TD + torch.sigmoid(self.shared_gate(x_TD)) * self.shared(x_TD)
        return self._parallel.all_reduce(mine_TD) if divided is None else divided.sum(mine_TD)
