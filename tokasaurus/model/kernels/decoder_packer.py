"""Packs a decoder's layers for the CPU kernels, one by one, as soon as their weights are there."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from tokasaurus.model.decoder import Decoder, DecoderLayer, GatedMLP
from tokasaurus.model.kernels.linear import PackedGroupedLinear, PackedLinear
from tokasaurus.model.kernels.loader import Kernels, kernels_available, load_kernels
from tokasaurus.model.layers.embedding import Embedding, Head
from tokasaurus.model.layers.grouped_linear import GroupedLinear
from tokasaurus.model.layers.linear import Linear
from tokasaurus.model.layers.norm import RMSNorm
from tokasaurus.model.quantization.scheme import PLAIN, QuantizationScheme, WeightFormat


class DecoderPacker:
    """The layers compute with packed weights afterwards, and hold no others."""

    def __init__(
        self, decoder: Decoder, kernels: Kernels, quantization: QuantizationScheme, *, fuses: bool
    ) -> None:
        """`fuses`: the layers are for a `FusedDecoder`, which joins gate, up and activation."""
        self._decoder = decoder
        self._kernels = kernels
        self._quantization = quantization
        self._fuses = fuses
        mlps = [layer.mlp for layer in decoder.layers if isinstance(layer, DecoderLayer)]
        self._gated = {id(mlp.gate_up) for mlp in mlps if fuses and isinstance(mlp, GatedMLP)}

    def pack_all(self) -> None:
        for module in self._decoder.modules():
            self.pack(module)

    def pack(self, layer: nn.Module) -> None:
        """A layer without weights to pack, or whose weights are packed, stays as it is."""
        head = self._decoder.head
        if isinstance(layer, Embedding) and head is not None and head.is_tied:
            layer = head
        if isinstance(layer, GroupedLinear) and layer.kernel is None:
            layer.finish_loading(self._pack_group)
            release(layer)
        elif isinstance(layer, Linear) and layer.kernel is None:
            layer.finish_loading(lambda weight, bias: self._pack_linear(layer, weight, bias))
            release(layer)

    def _pack_group(self, weight: torch.Tensor) -> PackedGroupedLinear:
        return PackedGroupedLinear(self._kernels, weight, self._quantization.layers)

    def _pack_linear(
        self, layer: Linear, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> PackedLinear:
        packed = PackedLinear(
            self._kernels,
            weight,
            bias,
            gated=id(layer) in self._gated,
            float_output=self._fuses and isinstance(layer, Head),
            weight_format=self._format_of(layer),
        )
        embedding = self._decoder.embedding
        if isinstance(layer, Head) and layer.is_tied and embedding is not None:
            embedding.read_rows_with(packed.rows)
        return packed

    def _format_of(self, layer: Linear) -> WeightFormat:
        """Layers that every rank holds whole route to experts: small, but they decide much."""
        if isinstance(layer, Head):
            return self._quantization.head
        return PLAIN if type(layer) is Linear else self._quantization.layers


def packing_while_loading(
    decoder: Decoder, quantization: QuantizationScheme
) -> Callable[[nn.Module], None]:
    """What to call with each layer whose weights have been read, so that the weights of the whole
    model are never in memory as the checkpoint has them. Does nothing where nothing is quantised or
    could be: what speaks against it is said once the model is loaded."""
    can_pack = decoder.dtype in (torch.bfloat16, torch.float32) and not quantization.is_plain
    if not can_pack or decoder.rotary.table_LR.device.type != "cpu" or not kernels_available():
        return lambda _layer: None
    packer = DecoderPacker(decoder, load_kernels(), quantization, fuses=can_fuse(decoder))
    return packer.pack


def can_fuse(decoder: Decoder) -> bool:
    """Whether every layer has the shape that the stack computes, and nothing to ask other ranks."""
    if decoder.parallel.tp_size > 1:
        return False
    norms = [module for module in decoder.modules() if isinstance(module, RMSNorm)]
    if len({norm.eps for norm in norms}) > 1:
        return False
    return (decoder.norm is None or isinstance(decoder.norm, RMSNorm)) and all(
        isinstance(layer, DecoderLayer)
        and not layer.is_parallel
        and isinstance(layer.attention_norm, RMSNorm)
        and isinstance(layer.mlp_norm, RMSNorm)
        and isinstance(layer.mlp, GatedMLP)
        and layer.mlp.activation is F.silu
        for layer in decoder.layers
    )


def release(layer: nn.Module) -> None:
    """Give the memory of a packed layer's plain weight back."""
    assert isinstance(layer.weight, nn.Parameter)
    layer.weight.data = layer.weight.data.new_empty(0)
