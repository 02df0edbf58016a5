"""Puts the CPU kernels under a loaded model."""

import torch

from tokasaurus.model.attention.backend import AttentionBackend, CausalModel
from tokasaurus.model.attention.cpu_backend import CpuBackend
from tokasaurus.model.decoder import Decoder
from tokasaurus.model.kernels.fused_decoder import FusedDecoder, can_fuse, release
from tokasaurus.model.kernels.linear import PackedGroupedLinear, PackedLinear
from tokasaurus.model.kernels.loader import Kernels
from tokasaurus.model.layers.grouped_linear import GroupedLinear
from tokasaurus.model.layers.linear import Linear
from tokasaurus.model.transformers_path.model import TransformersModel


def with_cpu_kernels(model: CausalModel, backend: AttentionBackend) -> CausalModel:
    """The model with everything that the kernels cover computed by them, for use with `backend`.

    Without the kernels' own attention backend the model stays as it is. `model` must not be used
    any more.
    """
    if not isinstance(backend, CpuBackend):
        return model
    if isinstance(model, Decoder) and can_fuse(model):
        return FusedDecoder(model, backend.kernels)

    if isinstance(model, Decoder):
        _pack_decoder(model, backend.kernels)
    elif isinstance(model, TransformersModel):
        _pack_transformers(model, backend.kernels)
    return model


def _pack_decoder(model: Decoder, kernels: Kernels) -> None:
    def pack(weight: torch.Tensor, bias: torch.Tensor | None) -> PackedLinear:
        packed = PackedLinear(kernels, weight, bias)
        if model.embedding is not None and weight is model.embedding.weight:
            model.embedding.read_rows_with(packed.rows)
        return packed

    def pack_grouped(weight: torch.Tensor) -> PackedGroupedLinear:
        return PackedGroupedLinear(kernels, weight)

    model.pack_linears(pack)
    for module in model.modules():
        if isinstance(module, GroupedLinear):
            module.finish_loading(pack_grouped)
        if isinstance(module, Linear | GroupedLinear):
            release(module)


def _pack_transformers(model: TransformersModel, kernels: Kernels) -> None:
    """A weight that a special module uses too, such as a scaled embedding, is held twice."""
    for layer, others in model.linear_layers():
        packed = PackedLinear(kernels, layer.weight, layer.bias)
        layer.forward = packed  # type: ignore[method-assign, assignment]
        if all(type(other) is torch.nn.Embedding for other in others):
            for other in others:
                other.forward = packed.rows
            release(layer)
