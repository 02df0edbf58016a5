"""Linear layers over weights that are held once, packed for the CPU kernels.

Shapes: M rows, K input features, N output features, G groups.
"""

import torch

from tokasaurus.model.kernels.loader import Kernels
from tokasaurus.model.quantization.scheme import PLAIN, WeightFormat


class PackedLinear:
    """y = x @ weight.T + bias, in bfloat16 or float32 with sums in float32 or exact integers."""

    def __init__(
        self,
        kernels: Kernels,
        weight_NK: torch.Tensor,
        bias_N: torch.Tensor | None,
        *,
        gated: bool = False,
        float_output: bool = False,
        weight_format: WeightFormat = PLAIN,
    ) -> None:
        """`gated`: the weight is gate over up, and y = silu(gate(x)) * up(x).

        `float_output`: y is float32 even if x is not.
        """
        self._ops = kernels.ops
        self.in_features = weight_NK.shape[1]
        self.out_features = weight_NK.shape[0] // (2 if gated else 1)
        self._gated = gated
        self._float_output = float_output
        self._dtype = weight_NK.dtype
        self._format = weight_format.arguments
        self.packed = self._ops.pack_weight(weight_NK.detach().contiguous(), gated, *self._format)
        self.bias = None if bias_N is None else bias_N.detach().float().contiguous()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x_MK = x.reshape(-1, self.in_features)
        y_MN = self._ops.linear(
            x_MK,
            self.packed,
            self.out_features,
            self._gated,
            self.bias,
            None,
            0.0,
            None,
            self._float_output,
            *self._format,
        )
        return y_MN.view(*x.shape[:-1], self.out_features)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """The weight's rows, as an embedding looks them up; not of a gated weight."""
        assert not self._gated, "a gated weight has no rows"
        rows = self._ops.packed_rows(
            self.packed, ids.flatten(), self.in_features, self._dtype, *self._format
        )
        return rows.view(*ids.shape, self.in_features)


class PackedGroupedLinear:
    """A `GroupedKernel` over packed weights; arithmetic as in `PackedLinear`."""

    def __init__(
        self, kernels: Kernels, weight_GNK: torch.Tensor, weight_format: WeightFormat = PLAIN
    ) -> None:
        self._ops = kernels.ops
        self._out_features = weight_GNK.shape[1]
        self._format = weight_format.arguments
        self._packed = self._ops.pack_group(weight_GNK, *self._format)

    def __call__(self, x_MK: torch.Tensor, ends_G: torch.Tensor) -> torch.Tensor:
        return self._ops.grouped_linear(
            x_MK, self._packed, ends_G, self._out_features, *self._format
        )
