"""One forward pass: plans the step's attention and runs the model.

Shapes: T tokens of the step, D hidden size.
"""

import numpy as np
import torch

from tokasaurus.model.attention.backend import AttentionBackend, AttentionBatch, CausalModel
from tokasaurus.model.device_copy import to_device


class ForwardPass:
    """What lies between a step's token ids and its hidden states."""

    def __init__(self, model: CausalModel, backend: AttentionBackend, device: torch.device) -> None:
        self._model = model
        self._backend = backend
        self._device = device

    def run(
        self, ids_T: torch.Tensor, positions_T: np.ndarray, attention: AttentionBatch
    ) -> torch.Tensor:
        """Final hidden states TD. `positions_T` is on the host; the result may be overwritten by
        the next run."""
        self._backend.plan(attention)
        positions = to_device(positions_T, self._device)
        return self._model.forward(ids_T, positions, self._backend)
