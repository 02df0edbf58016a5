"""Linear layers that multiply each row by the weight of its group, such as a token by an expert.

Shapes: R rows sorted by group, G groups, K input features, N output features.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from tokasaurus.model.config import TensorSpec
from tokasaurus.model.layers.loading import LoadableLayer
from tokasaurus.model.weights.tensors import CheckpointTensor

GroupedKernel = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
GroupedPacker = Callable[[torch.Tensor], GroupedKernel]
"""Repacks weight_GNK for a device's kernel; see `GroupedLinear.forward` for what that returns."""

_GROUPED_MM_MAJORS = (9, 10)
"""Compute capabilities whose grouped product reads the groups' ends on the device; elsewhere torch
copies them to the host first."""
_GROUPED_MM_ALIGNMENT = 8
"""Elements of bfloat16 that make the 16 bytes its rows must be multiples of."""


class GroupedLinear(LoadableLayer):
    """y[r] = weight[group of r] @ x[r].

    `groups` are the checkpoint's groups that this rank holds. Parts: "3" is the checkpoint's group
    3, "3.gate" and "3.up" the halves of its rows, "all" every group in one tensor.
    """

    def __init__(
        self,
        groups: range,
        num_groups: int,
        in_features: int,
        out_features: int,
        tensors: TensorSpec,
    ) -> None:
        super().__init__()
        self.groups, self.num_groups = groups, num_groups
        self.weight = tensors.empty(len(groups), out_features, in_features)
        self._kernel: GroupedKernel | None = None

    def load(self, part: str, parameter: str, source: CheckpointTensor) -> None:
        target = self.parameter(parameter)
        if part == "all":
            source.expect_shape((self.num_groups, *target.shape[1:]))
            source.copy_to(target, slice(self.groups.start, self.groups.stop))
            return
        group, _, half = part.partition(".")
        if int(group) in self.groups:
            rows = target[int(group) - self.groups.start]
            gate, up = rows.chunk(2)
            source.copy_to({"": rows, "gate": gate, "up": up}[half])

    def finish_loading(self, pack: GroupedPacker) -> None:
        """All weights are in place: let a backend repack them for its own kernel."""
        self._kernel = pack(self.weight.detach())

    @property
    def kernel(self) -> GroupedKernel | None:
        """What loading was finished with, if it was."""
        return self._kernel

    def forward(self, x_RK: torch.Tensor, ends_G: torch.Tensor) -> torch.Tensor:
        """y_RN. `ends_G` (int32, on x's device) are the row numbers at which the groups end.

        Rows after the last end belong to no group; their results are undefined.
        """
        if self._kernel is not None:
            return self._kernel(x_RK, ends_G)
        return grouped_linear(x_RK, self.weight, ends_G)


@torch.library.custom_op("tokasaurus::grouped_linear", mutates_args=())
def grouped_linear(
    x_RK: torch.Tensor, weight_GNK: torch.Tensor, ends_G: torch.Tensor
) -> torch.Tensor:
    """As `GroupedLinear.forward`, in torch; one operator, so that compiled code may contain it."""
    if x_RK.is_cuda and has_grouped_mm(weight_GNK):
        return product_on_device(x_RK, weight_GNK, ends_G)
    if x_RK.is_cuda and torch.cuda.is_current_stream_capturing():
        return product_by_mask(x_RK, weight_GNK, ends_G)
    return product_by_group(x_RK, weight_GNK, ends_G)


@grouped_linear.register_fake
def _(x_RK: torch.Tensor, weight_GNK: torch.Tensor, ends_G: torch.Tensor) -> torch.Tensor:
    del ends_G
    return x_RK.new_empty((x_RK.shape[0], weight_GNK.shape[1]))


def has_grouped_mm(weight_GNK: torch.Tensor) -> bool:
    """Whether torch has a kernel for this weight that needs nothing from the host."""
    return (
        weight_GNK.dtype == torch.bfloat16
        and weight_GNK.shape[1] % _GROUPED_MM_ALIGNMENT == 0
        and weight_GNK.shape[2] % _GROUPED_MM_ALIGNMENT == 0
        and torch.cuda.get_device_capability(weight_GNK.device)[0] in _GROUPED_MM_MAJORS
    )


def product_on_device(
    x_RK: torch.Tensor, weight_GNK: torch.Tensor, ends_G: torch.Tensor
) -> torch.Tensor:
    """One grouped product. It reads each active weight once and can be captured in a graph."""
    return F.grouped_mm(x_RK, weight_GNK.transpose(1, 2), offs=ends_G)


def product_by_group(
    x_RK: torch.Tensor, weight_GNK: torch.Tensor, ends_G: torch.Tensor
) -> torch.Tensor:
    """A product per group that has rows. The host has to know the ends."""
    y_RN = x_RK.new_empty((x_RK.shape[0], weight_GNK.shape[1]))
    start = 0
    for group, end in enumerate(ends_G.tolist()):
        if end > start:
            torch.mm(x_RK[start:end], weight_GNK[group].t(), out=y_RN[start:end])
        start = end
    return y_RN


def product_by_mask(
    x_RK: torch.Tensor, weight_GNK: torch.Tensor, ends_G: torch.Tensor
) -> torch.Tensor:
    """A product of all rows with every weight, of which each row keeps its own.

    For graphs on GPUs without a grouped kernel: shapes don't depend on the data, at the price of
    reading weights that no row needs.
    """
    y_RN = x_RK.new_zeros((x_RK.shape[0], weight_GNK.shape[1]))
    group_R1 = torch.searchsorted(
        ends_G, torch.arange(x_RK.shape[0], device=x_RK.device, dtype=ends_G.dtype), right=True
    ).unsqueeze(1)
    for group, weight_NK in enumerate(weight_GNK):
        y_RN = torch.where(group_R1 == group, F.linear(x_RK, weight_NK), y_RN)
    return y_RN
