"""Puts the CPU kernels under a loaded model."""

import torch

from tokasaurus.model.attention.backend import AttentionBackend, CausalModel
from tokasaurus.model.attention.cpu_backend import CpuBackend
from tokasaurus.model.decoder import Decoder
from tokasaurus.model.kernels.fused_decoder import FusedDecoder, can_fuse, release
from tokasaurus.model.kernels.linear import PackedLinear
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

    def pack(weight: torch.Tensor, bias: torch.Tensor | None) -> PackedLinear:
        return PackedLinear(backend.kernels, weight, bias)

    if isinstance(model, Decoder):
        model.pack_linears(pack)
        for module in model.modules():
            if isinstance(module, Linear) and not (module is model.head and model.head.is_tied):
                release(module)
    elif isinstance(model, TransformersModel):
        # Its weights stay, because its own code may read them anywhere; unread ones need no memory
        # where they are mapped from the checkpoint.
        for layer in model.linear_layers():
            layer.forward = pack(layer.weight, layer.bias)  # type: ignore[method-assign, assignment]
    return model
