"""The one decoder that all native families share, built from a `DecoderSpec`.

Shapes: T tokens of a step, S rows that are sampled, D hidden size, N query heads, H head size,
R rotated elements, V vocabulary.
"""

from dataclasses import replace

import torch
from torch import nn

from tokasaurus.model.attention.backend import AttentionBackend, AttentionLayer
from tokasaurus.model.config import DecoderSpec, TensorSpec
from tokasaurus.model.divided_tokens import DividedTokens, TokenDivision
from tokasaurus.model.layers.activation import ACTIVATIONS
from tokasaurus.model.layers.embedding import Embedding, Head
from tokasaurus.model.layers.linear import (
    ColumnLinear,
    GateUpLinear,
    QKVLinear,
    RowLinear,
)
from tokasaurus.model.layers.moe import MixtureOfExperts
from tokasaurus.model.layers.norm import Norm, RMSNorm, make_norm
from tokasaurus.model.layers.rotary import Rotary, apply_rotary
from tokasaurus.model.stages import Stage


class Attention(nn.Module):
    """Self-attention over the paged KV cache."""

    def __init__(self, spec: DecoderSpec, index: int, tensors: TensorSpec) -> None:
        super().__init__()
        self.qkv = QKVLinear(
            spec.hidden_size,
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            tensors,
            bias=spec.qkv_bias,
        )
        if spec.qk_norm:
            self.q_norm = RMSNorm(spec.head_dim, spec.norm_eps, tensors)
            self.k_norm = RMSNorm(spec.head_dim, spec.norm_eps, tensors)
        self.has_qk_norm = spec.qk_norm
        self.out = RowLinear(
            spec.num_heads * spec.head_dim,
            spec.hidden_size,
            tensors,
            bias=spec.attention_out_bias,
        )
        self.layer = AttentionLayer(
            index=index,
            num_heads=self.qkv.num_heads,
            num_kv_heads=self.qkv.num_kv_heads,
            head_dim=spec.head_dim,
            scale=spec.head_dim**-0.5,
            sliding_window=spec.sliding_windows[index],
        )

    def forward(
        self,
        x_TD: torch.Tensor,
        cos_sin_T1R: torch.Tensor,
        attention: AttentionBackend,
        divided: DividedTokens | None = None,
    ) -> torch.Tensor:
        q, k, v = self.qkv(x_TD, divided)
        if self.has_qk_norm:
            q, k = self.q_norm.normalize(q), self.k_norm.normalize(k)
        q, k = apply_rotary(q, cos_sin_T1R), apply_rotary(k, cos_sin_T1R)
        out_TNH = attention.run(q, k, v, self.layer)
        return self.out(out_TNH.flatten(1), divided)


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)); with `is_partial`, what this rank adds to it."""

    def __init__(self, spec: DecoderSpec, tensors: TensorSpec, *, is_partial: bool = False) -> None:
        super().__init__()
        self.gate_up = GateUpLinear(
            spec.hidden_size, spec.intermediate_size, tensors, bias=spec.mlp_bias
        )
        self.down = RowLinear(
            spec.intermediate_size,
            spec.hidden_size,
            tensors,
            bias=spec.mlp_bias,
            is_partial=is_partial,
        )
        self.activation = ACTIVATIONS[spec.activation]

    def forward(self, x_TD: torch.Tensor, divided: DividedTokens | None = None) -> torch.Tensor:
        gate, up = self.gate_up(x_TD, divided).chunk(2, dim=-1)
        return self.down(self.activation(gate) * up, divided)


class PlainMLP(nn.Module):
    """down(activation(up(x)))."""

    def __init__(self, spec: DecoderSpec, tensors: TensorSpec) -> None:
        super().__init__()
        self.up = ColumnLinear(
            spec.hidden_size, spec.intermediate_size, tensors, bias=spec.mlp_bias
        )
        self.down = RowLinear(spec.intermediate_size, spec.hidden_size, tensors, bias=spec.mlp_bias)
        self.activation = ACTIVATIONS[spec.activation]

    def forward(self, x_TD: torch.Tensor, divided: DividedTokens | None = None) -> torch.Tensor:
        return self.down(self.activation(self.up(x_TD, divided)), divided)


def make_mlp(spec: DecoderSpec, index: int, tensors: TensorSpec) -> nn.Module:
    """What a layer has beside its attention."""
    if spec.moe is not None and index in spec.moe.layers:
        shared_size = spec.moe.shared_intermediate_size
        shared = None
        if shared_size is not None:
            sized = replace(spec, intermediate_size=shared_size)
            shared = GatedMLP(sized, tensors, is_partial=True)
        return MixtureOfExperts(spec, tensors, shared)
    return {"gated": GatedMLP, "plain": PlainMLP}[spec.mlp](spec, tensors)


class DecoderLayer(nn.Module):
    """Attention and MLP, one after the other or side by side.

    Takes and returns (output, residual): the next norm adds the two.
    """

    def __init__(self, spec: DecoderSpec, index: int, tensors: TensorSpec) -> None:
        super().__init__()
        self.is_parallel = spec.block != "sequential"
        self.attention_norm = make_norm(spec.norm, spec.hidden_size, spec.norm_eps, tensors)
        self.attention = Attention(spec, index, tensors)
        self.has_mlp_norm = spec.block != "parallel_shared_norm"
        if self.has_mlp_norm:
            self.mlp_norm = make_norm(spec.norm, spec.hidden_size, spec.norm_eps, tensors)
        self.mlp = make_mlp(spec, index, tensors)

    def forward(
        self,
        x_TD: torch.Tensor,
        residual_TD: torch.Tensor | None,
        cos_sin_T1R: torch.Tensor,
        attention: AttentionBackend,
        divided: DividedTokens | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """With `divided`, x and the residual are those of this rank's tokens."""
        normed_TD, residual_TD = self.attention_norm(x_TD, residual_TD)
        attended_TD = self.attention(normed_TD, cos_sin_T1R, attention, divided)
        if self.is_parallel:
            if self.has_mlp_norm:
                normed_TD = self.mlp_norm.normalize(residual_TD)
            return self.mlp(normed_TD, divided) + attended_TD, residual_TD
        normed_TD, residual_TD = self.mlp_norm(attended_TD, residual_TD)
        return self.mlp(normed_TD, divided), residual_TD


class Decoder(nn.Module):
    """A `CausalModel` of one family; with pipeline parallelism, one stage of it."""

    def __init__(
        self, spec: DecoderSpec, family: str, max_model_len: int, tensors: TensorSpec
    ) -> None:
        super().__init__()
        self.path = f"native {family}"
        self.vocab_size = spec.vocab_size
        self.hidden_size = spec.hidden_size
        self.max_model_len = max_model_len
        self.dtype = tensors.dtype
        self.parallel = tensors.parallel
        self._division: TokenDivision | None = None
        self.stage = Stage.of(spec, tensors.parallel)
        self.embedding: Embedding | None = None
        if self.stage.has_embedding:
            self.embedding = Embedding(spec.vocab_size, spec.hidden_size, tensors)
        self.rotary = Rotary(spec.rope, max_model_len, tensors.dtype, tensors.device)
        self.layers = nn.ModuleList(
            DecoderLayer(spec, index, tensors) for index in self.stage.layers
        )
        self.norm: Norm | None = None
        self.head: Head | None = None
        if self.stage.is_last:
            self.norm = make_norm(spec.norm, spec.hidden_size, spec.norm_eps, tensors)
            tied = self.embedding if spec.tie_embeddings else None
            self.head = Head(spec.vocab_size, spec.hidden_size, tensors, tied)
        self.attention_layers: tuple[AttentionLayer, ...] = tuple(
            module.layer for module in self.modules() if isinstance(module, Attention)
        )
        for index, layer in enumerate(self.attention_layers):
            layer.index = index

    def no_inputs(self, num_tokens: int) -> torch.Tensor:
        """Zeros in the form of `forward`'s inputs."""
        device = self.rotary.table_LR.device
        if self.stage.is_first:
            return torch.zeros(num_tokens, dtype=torch.int64, device=device)
        return torch.zeros(num_tokens, self.hidden_size, dtype=self.dtype, device=device)

    def divide_tokens(self, division: TokenDivision) -> None:
        """From now on, steps that are large enough divide their tokens between the ranks."""
        self._division = division

    def forward(
        self, inputs_T: torch.Tensor, positions_T: torch.Tensor, attention: AttentionBackend
    ) -> torch.Tensor:
        """Takes token ids, in later stages what the stage before returned. Returns the final hidden
        states, in earlier stages the sum that the next layer normalises."""
        cos_sin_T1R = self.rotary(positions_T)
        divided = None if self._division is None else self._division.of(len(positions_T))
        x_TD, residual_TD = inputs_T, None
        if self.stage.is_first:
            assert self.embedding is not None, "the first stage has the embedding"
            x_TD = self.embedding(inputs_T, divided)
        elif divided is not None:
            x_TD = divided.share(inputs_T)
        for layer in self.layers:
            x_TD, residual_TD = layer(x_TD, residual_TD, cos_sin_T1R, attention, divided)
        if self.norm is not None:
            x_TD, _ = self.norm(x_TD, residual_TD)
        elif residual_TD is not None:
            x_TD = x_TD + residual_TD
        return x_TD if divided is None else divided.whole(x_TD)

    def logits(self, hidden_SD: torch.Tensor) -> torch.Tensor:
        assert self.head is not None, "the last stage has the head"
        return self.head.whole(self.head(hidden_SD))

    def shard_logits(self, hidden_SD: torch.Tensor) -> torch.Tensor:
        """float32 logits SL of this rank's share of the vocabulary; -inf at its padding."""
        assert self.head is not None, "the last stage has the head"
        return self.head(hidden_SD)
