"""A native decoder whose layers all run in one call of the CPU kernels.

For the shape that most families have: RMS norms, attention then gated SiLU MLP. The weights move
out of the decoder into their packed form, so that memory holds them once.

Shapes: T tokens, S sampled rows, D hidden size, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F

from tokasaurus.model.attention.backend import AttentionBackend, AttentionLayer
from tokasaurus.model.attention.cpu_backend import CpuBackend
from tokasaurus.model.decoder import Attention, Decoder, DecoderLayer, GatedMLP
from tokasaurus.model.kernels.decoder_packer import DecoderPacker, can_fuse
from tokasaurus.model.kernels.linear import PackedLinear
from tokasaurus.model.kernels.loader import Kernels
from tokasaurus.model.layers.linear import Linear
from tokasaurus.model.quantization.scheme import NO_QUANTIZATION, QuantizationScheme


class FusedDecoder:
    """`CausalModel` over a `Decoder`'s weights; runs with the `CpuBackend` it was made for."""

    def __init__(
        self,
        decoder: Decoder,
        kernels: Kernels,
        quantization: QuantizationScheme = NO_QUANTIZATION,
    ) -> None:
        """Takes the weights out of `decoder`, which can't be run afterwards."""
        assert can_fuse(decoder), decoder.path
        self.attention_layers: tuple[AttentionLayer, ...] = decoder.attention_layers
        self.vocab_size = decoder.vocab_size
        self.hidden_size = decoder.hidden_size
        self.stage = decoder.stage
        self.max_model_len = decoder.max_model_len
        self.dtype = decoder.dtype
        self.path = f"{decoder.path}, fused CPU kernels"
        self._kernels = kernels
        self._format = quantization.layers.arguments
        self._head_format = quantization.head.arguments
        self._rotary_table = decoder.rotary.table_LR
        norm = decoder.norm
        self._final_norm = torch.empty(0) if norm is None else _floats(norm.weight)
        first = decoder.layers[0]
        assert isinstance(first, DecoderLayer)
        assert isinstance(first.mlp, GatedMLP)
        self._norm_eps = first.attention_norm.eps
        qkv = first.attention.qkv
        self._sizes = (qkv.num_heads, qkv.num_kv_heads, qkv.head_dim)
        DecoderPacker(decoder, kernels, quantization, fuses=True).pack_all()
        self._weights: list[torch.Tensor] = []
        for layer in decoder.layers:
            assert isinstance(layer, DecoderLayer)
            self._weights += _layer_weights(layer)
        self._intermediate_size = _kernel_of(first.mlp.down).in_features
        self._head: PackedLinear | None = None
        self._embedding: torch.Tensor | None = None
        if decoder.embedding is not None and (decoder.head is None or not decoder.head.is_tied):
            self._embedding = decoder.embedding.weight.detach()
        if decoder.head is not None:
            self._head = _kernel_of(decoder.head)
        self._scales = [layer.scale for layer in self.attention_layers]
        self._softcaps = [layer.logit_softcap or 0.0 for layer in self.attention_layers]
        self._windows = [layer.sliding_window or 0 for layer in self.attention_layers]

    def forward(
        self, inputs_T: torch.Tensor, positions_T: torch.Tensor, attention: AttentionBackend
    ) -> torch.Tensor:
        """As `Decoder.forward`; a later stage's input is overwritten."""
        assert isinstance(attention, CpuBackend), attention.name
        hidden_TD = self._embed(inputs_T) if self.stage.is_first else inputs_T
        step = attention.stack_arguments()
        self._kernels.ops.decoder_stack(
            hidden_TD,
            positions_T,
            self._rotary_table,
            step.slot_mapping,
            step.block_ids,
            self._weights,
            step.caches,
            step.plans,
            step.partial_rows,
            self._scales,
            self._softcaps,
            self._windows,
            self._final_norm,
            self._norm_eps,
            *self._sizes,
            self._intermediate_size,
            attention.page_size,
            *self._format,
        )
        return hidden_TD

    def make_decode_step(self, attention: CpuBackend, max_logits_rows: int) -> Any:
        """The kernels' object that runs whole decode steps over this model, which has all layers,
        and the backend's present cache. It shares the weights, and keeps them."""
        assert self._head is not None, "a decode step draws tokens"
        assert self._head.bias is None, "the kernels' decode step knows no bias of a head"
        return self._kernels.classes.DecodeStep(
            self._weights,
            attention.caches(),
            self._rotary_table,
            self._final_norm,
            torch.empty(0) if self._embedding is None else self._embedding,
            self._head.packed,
            self._scales,
            self._softcaps,
            self._windows,
            self._norm_eps,
            [
                self.hidden_size,
                self._intermediate_size,
                *self._sizes,
                attention.page_size,
                self.vocab_size,
                max_logits_rows,
            ],
            [*self._format, *self._head_format],
        )

    def logits(self, hidden_SD: torch.Tensor) -> torch.Tensor:
        assert self._head is not None, "the last stage has the head"
        return self._head(hidden_SD)

    def _embed(self, ids_T: torch.Tensor) -> torch.Tensor:
        if self._embedding is None:
            assert self._head is not None, "a tied embedding is in the head"
            return self._head.rows(ids_T)
        return F.embedding(ids_T, self._embedding)


def _layer_weights(layer: DecoderLayer) -> list[torch.Tensor]:
    """The packed layer's tensors in the order of binding_stack.h."""
    attention, mlp = layer.attention, layer.mlp
    assert isinstance(mlp, GatedMLP)
    kernels = [_kernel_of(x) for x in (attention.qkv, attention.out, mlp.gate_up, mlp.down)]
    biases = [torch.empty(0) if kernel.bias is None else kernel.bias for kernel in kernels]
    norms = [_floats(layer.attention_norm.weight), _floats(layer.mlp_norm.weight)]
    packed = [kernel.packed for kernel in kernels]
    return [*packed, *biases, *norms, *_head_norms(attention), _sinks(attention.layer)]


def _kernel_of(linear: Linear) -> PackedLinear:
    assert isinstance(linear.kernel, PackedLinear), "the layer has not been packed"
    return linear.kernel


def _head_norms(attention: Attention) -> list[torch.Tensor]:
    if not attention.has_qk_norm:
        return [torch.empty(0), torch.empty(0)]
    return [_floats(attention.q_norm.weight), _floats(attention.k_norm.weight)]


def _sinks(layer: AttentionLayer) -> torch.Tensor:
    return torch.empty(0) if layer.sinks_N is None else _floats(layer.sinks_N)


def _floats(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().float().contiguous()
