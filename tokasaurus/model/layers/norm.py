"""Norms with the residual addition fused into their signature.

Shapes: T tokens, D hidden size.
"""

import torch
import torch.nn.functional as F

from tokasaurus.model.config import TensorSpec
from tokasaurus.model.layers.loading import LoadableLayer


class Norm(LoadableLayer):
    """Base: subclasses say how a vector is normalised."""

    def __init__(self, size: int, eps: float, tensors: TensorSpec, *, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = tensors.empty(size)
        self.bias = tensors.empty(size) if bias else None

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(
        self, x_TD: torch.Tensor, residual_TD: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm of the sum, the sum) of a layer's output and the residual before it."""
        if residual_TD is not None:
            x_TD = residual_TD + x_TD
        return self.normalize(x_TD), x_TD


class RMSNorm(Norm):
    """Root-mean-square norm, computed in float32 (Zhang and Sennrich, arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float, tensors: TensorSpec) -> None:
        super().__init__(size, eps, tensors, bias=False)

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class LayerNorm(Norm):
    """Layer norm with weight and bias."""

    def __init__(self, size: int, eps: float, tensors: TensorSpec) -> None:
        super().__init__(size, eps, tensors, bias=True)

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


def make_norm(kind: str, size: int, eps: float, tensors: TensorSpec) -> Norm:
    """`kind` is "rms" or "layer"."""
    return {"rms": RMSNorm, "layer": LayerNorm}[kind](size, eps, tensors)
