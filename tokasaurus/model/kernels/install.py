"""Puts the CPU kernels under a loaded model."""

import torch

from tokasaurus.model.attention.backend import AttentionBackend, CausalModel
from tokasaurus.model.attention.cpu_backend import CpuBackend
from tokasaurus.model.decoder import Decoder
from tokasaurus.model.kernels.decoder_packer import DecoderPacker, can_fuse, release
from tokasaurus.model.kernels.fused_decoder import FusedDecoder
from tokasaurus.model.kernels.linear import PackedLinear
from tokasaurus.model.kernels.loader import Kernels
from tokasaurus.model.quantization.scheme import NO_QUANTIZATION, QuantizationScheme
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
        DecoderPacker(model, backend.kernels, quantization, fuses=False).pack_all()
    elif isinstance(model, TransformersModel):
        _pack_transformers(model, backend.kernels, quantization)
    elif not quantization.is_plain:
        raise quantization.refuse(f"does not cover {model.path}", "use model_path=native")
    return model


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
