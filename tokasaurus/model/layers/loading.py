"""What every layer with weights offers to the loader."""

import torch
from torch import nn

from tokasaurus.model.weights.tensors import CheckpointTensor


class LoadableLayer(nn.Module):
    """A layer that copies checkpoint tensors into its own parameters.

    `part` names the piece of the layer that a tensor fills ("q" of a fused QKV; "" is all of it),
    `parameter` is "weight" or "bias".
    """

    def load(self, part: str, parameter: str, source: CheckpointTensor) -> None:
        """Raises ModelError when the source's shape is not the piece's."""
        assert part == "", f"{type(self).__name__} has no part {part}"
        source.copy_to(self.parameter(parameter))

    def parameter(self, name: str) -> torch.Tensor:
        tensor = getattr(self, name)
        assert isinstance(tensor, torch.Tensor), f"{type(self).__name__} has no {name}"
        return tensor

    def parameter_names(self) -> list[str]:
        return [name for name, value in self._parameters.items() if value is not None]
