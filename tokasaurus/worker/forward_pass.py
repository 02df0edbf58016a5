"""One forward pass: plans the step's attention and runs the model, compiled or not.

Shapes: T tokens of the step, D hidden size.
"""

from collections.abc import Callable

import numpy as np
import torch

from tokasaurus.config.compile_options import CompileOptions
from tokasaurus.model.attention.backend import AttentionBackend, AttentionBatch, CausalModel
from tokasaurus.model.device_copy import to_device
from tokasaurus.worker.compilation import CompiledModel, num_compilations


class ForwardPass:
    """What lies between a step's token ids and its hidden states."""

    def __init__(
        self,
        model: CausalModel,
        backend: AttentionBackend,
        device: torch.device,
        *,
        compile_options: CompileOptions | None = None,
    ) -> None:
        """Raises ConfigError where the model can't be compiled."""
        if compile_options is not None:
            model = CompiledModel(model, backend, compile_options)
        self._model = model
        self._backend = backend
        self._device = device
        self._is_compiled = compile_options is not None
        self._num_compilations = 0

    @property
    def path(self) -> str:
        """The model's, and what was done to it."""
        return self._model.path

    def finish_warm_up(self) -> None:
        """From now on, compilations count as recompilations."""
        self.take_num_recompiles()

    def take_num_recompiles(self) -> int:
        """How many graphs were compiled since the last call."""
        if not self._is_compiled:
            return 0
        before, self._num_compilations = self._num_compilations, num_compilations()
        return self._num_compilations - before

    def run(
        self,
        ids_T: torch.Tensor,
        positions_T: np.ndarray,
        attention: AttentionBatch,
        launching: Callable[[], None] = lambda: None,
    ) -> torch.Tensor:
        """Final hidden states TD. `positions_T` is on the host; the result may be overwritten by
        the next run. `launching` is called when everything is prepared."""
        self._backend.plan(attention)
        positions = to_device(positions_T, self._device)
        launching()
        return self._model.forward(ids_T, positions, self._backend)
