"""Puts the CPU kernels under a loaded model."""

import torch

from tokasaurus.model.attention.backend import AttentionBackend, CausalModel
from tokasaurus.model.attention.cpu_backend import CpuBackend
from tokasaurus.model.decoder import Decoder
from tokasaurus.model.kernels.fused_decoder import FusedDecoder, can_fuse, release
from tokasaurus.model.kernels.linear import PackedLinear
from tokasaurus.model.layers.linear import Linear


def with_cpu_kernels(model: CausalModel, backend: AttentionBackend) -> CausalModel:
    """The model with everything that the kernels cover computed by them, for use with `backend`.

    Without the kernels' own attention backend the model stays as it is. `model` must not be used
    any more.
    """
    if not isinstance(backend, CpuBackend) or not isinstance(model, Decoder):
        return model
    if can_fuse(model):
        return FusedDecoder(model, backend.kernels)

    def pack(weight: torch.Tensor, bias: torch.Tensor | None) -> PackedLinear:
        return PackedLinear(backend.kernels, weight, bias)

    model.pack_linears(pack)
    for module in model.modules():
        if isinstance(module, Linear) and not (module is model.head and model.head.is_tied):
            release(module)
    return model
