"""Linear layers. QKV and gate-up are one weight each, filled from whatever the checkpoint has.

Shapes: T tokens, N query heads, K KV heads, H head size.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from tokasaurus.model.config import TensorSpec
from tokasaurus.model.layers.loading import LoadableLayer
from tokasaurus.model.weights.tensors import CheckpointTensor

LinearKernel = Callable[[torch.Tensor], torch.Tensor]
LinearPacker = Callable[[torch.Tensor, torch.Tensor | None], LinearKernel]
"""Repacks (weight, bias) for a device's kernel and returns the function that multiplies by it."""


class Linear(LoadableLayer):
    """y = x @ weight.T + bias."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        tensors: TensorSpec,
        *,
        bias: bool,
        weight: torch.nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        self.weight = tensors.empty(out_features, in_features) if weight is None else weight
        self.bias = tensors.empty(out_features) if bias else None
        self._kernel: LinearKernel | None = None

    def finish_loading(self, pack: LinearPacker) -> None:
        """All weights are in place: let a backend repack them for its own kernel."""
        self._kernel = pack(self.weight, self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._kernel is not None:
            return self._kernel(x)
        return F.linear(x, self.weight, self.bias)


class QKVLinear(Linear):
    """Queries, keys and values in one product; rows are all of q, then k, then v.

    Parts: "q", "k", "v"; "qkv": the same order in one tensor; "grouped": per KV head its query
    heads, its key head, its value head (Falcon).
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        tensors: TensorSpec,
        *,
        bias: bool,
    ) -> None:
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.sizes = (num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim)
        super().__init__(hidden_size, sum(self.sizes), tensors, bias=bias)

    def load(self, part: str, parameter: str, source: CheckpointTensor) -> None:
        if part != "grouped":
            super().load(part, parameter, source)
            return
        target = self.parameter(parameter)
        source.expect_shape(target.shape)
        pieces = {name: self.piece(name, target) for name in "qkv"}
        heads = {"q": self.num_heads // self.num_kv_heads, "k": 1, "v": 1}
        row = 0
        for group in range(self.num_kv_heads):
            for name, num_heads in heads.items():
                size = num_heads * self.head_dim
                destination = pieces[name][group * size : (group + 1) * size]
                source.copy_to(destination, slice(row, row + size))
                row += size

    def piece(self, part: str, target: torch.Tensor) -> torch.Tensor:
        pieces = dict(zip("qkv", target.split(self.sizes), strict=True))
        return {"qkv": target, **pieces}[part]

    def forward(  # type: ignore[override]
        self, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q TNH, k TKH, v TKH: views of one product."""
        q, k, v = super().forward(x).split(self.sizes, dim=-1)
        kv_shape = (-1, self.num_kv_heads, self.head_dim)
        return q.view(-1, self.num_heads, self.head_dim), k.view(kv_shape), v.view(kv_shape)


class GateUpLinear(Linear):
    """Gate and up projection in one product. Parts: "gate", "up", "gate_up"."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, tensors: TensorSpec, *, bias: bool
    ) -> None:
        super().__init__(hidden_size, 2 * intermediate_size, tensors, bias=bias)

    def piece(self, part: str, target: torch.Tensor) -> torch.Tensor:
        gate, up = target.chunk(2)
        return {"gate": gate, "up": up, "gate_up": target}[part]
