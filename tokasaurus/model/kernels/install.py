"""Puts the CPU kernels under a loaded model."""

import torch

from tokasaurus.model.attention.backend import AttentionBackend, CausalModel
from tokasaurus.model.attention.cpu_backend import CpuBackend
from tokasaurus.model.decoder import Decoder
from tokasaurus.model.kernels.fused_decoder import FusedDecoder, can_fuse, release
from tokasaurus.model.kernels.linear import PackedGroupedLinear, PackedLinear
from tokasaurus.model.kernels.loader import Kernels
from tokasaurus.model.layers.embedding import Head
from tokasaurus.model.layers.grouped_linear import GroupedLinear
from tokasaurus.model.layers.linear import Linear
from tokasaurus.model.quantization.scheme import (
    NO_QUANTIZATION,
    PLAIN,
    QuantizationScheme,
    WeightFormat,
)
from tokasaurus.model.transformers_path.model import TransformersModel


def with_cpu_kernels(
    model: CausalModel,
    backend: AttentionBackend,
    quantization: QuantizationScheme = NO_QUANTIZATION,
) -> CausalModel:
    """The model with everything that the kernels cover computed by them, for use with `backend`.

    Without the kernels' own attention backend the model stays as it is. `model` must not be used
    any more. Raises ConfigError where the weights can't be quantised as asked.
    """
    if not isinstance(backend, CpuBackend):
        if not quantization.is_plain:
            raise quantization.refuse(
                f"needs the CPU kernels, but attention runs on {backend.name}",
                "use attention_backend=cpu, a dtype of bfloat16 or float32, a C++ compiler",
            )
        return model
    if isinstance(model, Decoder) and can_fuse(model):
        return FusedDecoder(model, backend.kernels, quantization)

    if isinstance(model, Decoder):
        _pack_decoder(model, backend.kernels, quantization)
    elif isinstance(model, TransformersModel):
        _pack_transformers(model, backend.kernels, quantization)
    elif not quantization.is_plain:
        raise quantization.refuse(f"does not cover {model.path}", "use model_path=native")
    return model


def _pack_decoder(model: Decoder, kernels: Kernels, quantization: QuantizationScheme) -> None:
    formats = {
        id(module.weight): _format_of(module, quantization)
        for module in model.modules()
        if isinstance(module, Linear)
    }

    def pack(weight: torch.Tensor, bias: torch.Tensor | None) -> PackedLinear:
        packed = PackedLinear(kernels, weight, bias, weight_format=formats[id(weight)])
        if model.embedding is not None and weight is model.embedding.weight:
            model.embedding.read_rows_with(packed.rows)
        return packed

    def pack_grouped(weight: torch.Tensor) -> PackedGroupedLinear:
        return PackedGroupedLinear(kernels, weight, quantization.layers)

    model.pack_linears(pack)
    for module in model.modules():
        if isinstance(module, GroupedLinear):
            module.finish_loading(pack_grouped)
        if isinstance(module, Linear | GroupedLinear):
            release(module)


def _format_of(layer: Linear, quantization: QuantizationScheme) -> WeightFormat:
    """Layers that every rank holds whole are routers of experts: small, but they decide much."""
    if isinstance(layer, Head):
        return quantization.head
    return PLAIN if type(layer) is Linear else quantization.layers


def _pack_transformers(
    model: TransformersModel, kernels: Kernels, quantization: QuantizationScheme
) -> None:
    """A weight that a special module uses too, such as a scaled embedding, is held twice."""
    others_held = [] if quantization.is_plain else model.other_matrices()
    if others_held:
        raise quantization.refuse(
            f"covers plain linear layers, but {model.path} has other weights, among them "
            f"{', '.join(others_held[:3])}",
            "serve a model that the native decoder covers",
        )
    for layer, others in model.linear_layers():
        is_head = layer.out_features == model.vocab_size
        weight_format = quantization.head if is_head else quantization.layers
        packed = PackedLinear(kernels, layer.weight, layer.bias, weight_format=weight_format)
        layer.forward = packed  # type: ignore[method-assign, assignment]
        if all(type(other) is torch.nn.Embedding for other in others):
            for other in others:
                other.forward = packed.rows
            release(layer)
