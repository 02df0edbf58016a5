"""torch.compile over a whole decoder: one graph for any number of tokens, and one for a single one.

Shapes: T tokens of a step, S rows that are sampled, D hidden size.
"""

import logging
import time
from collections.abc import Callable

import torch

from tokasaurus.config.compile_options import CompileOptions
from tokasaurus.errors import ConfigError
from tokasaurus.model.attention.backend import AttentionBackend, AttentionLayer, CausalModel
from tokasaurus.model.attention.operator import AttentionOperator
from tokasaurus.model.decoder import Decoder

_logger = logging.getLogger(__name__)


class CompiledModel:
    """A `CausalModel` that runs a native decoder compiled.

    A second graph for the same shapes never stays unnoticed: `num_compilations` counts them.
    """

    def __init__(
        self, model: CausalModel, backend: AttentionBackend, options: CompileOptions
    ) -> None:
        """Nothing is compiled before the first call. Raises ConfigError for a model that can't be
        compiled as a whole and for options that torch does not know."""
        if not isinstance(model, Decoder):
            raise ConfigError(
                f"torch_compile=T compiles native decoders, not {model.path}; set cpu_kernels=F "
                "on a CPU, or torch_compile=F."
            )
        self.attention_layers: tuple[AttentionLayer, ...] = model.attention_layers
        self.vocab_size = model.vocab_size
        self.max_model_len = model.max_model_len
        self.dtype = model.dtype
        self.path = f"{model.path}, compiled"
        self._model = model
        self._backend = backend
        operator = AttentionOperator(backend, model.attention_layers)

        def forward(input_ids_T: torch.Tensor, positions_T: torch.Tensor) -> torch.Tensor:
            return model.forward(input_ids_T, positions_T, operator)

        from torch._dynamo import mark_dynamic

        self._mark_dynamic = mark_dynamic
        self._forward = _compile(forward, options)

    def forward(
        self, input_ids_T: torch.Tensor, positions_T: torch.Tensor, attention: AttentionBackend
    ) -> torch.Tensor:
        assert attention is self._backend, attention.name
        if len(input_ids_T) > 1:
            # Without the marks the first length would be a constant of the graph; a length of 1
            # always is.
            for tensor in (input_ids_T, positions_T):
                self._mark_dynamic(tensor, 0)
        before, began = num_compilations(), time.perf_counter()
        hidden_TD = self._forward(input_ids_T, positions_T)
        if num_compilations() != before:
            seconds = time.perf_counter() - began
            _logger.info("compiled for %d tokens in %.1f s", len(input_ids_T), seconds)
        return hidden_TD

    def logits(self, hidden_SD: torch.Tensor) -> torch.Tensor:
        return self._model.logits(hidden_SD)


def num_compilations() -> int:
    """Graphs that torch has compiled in this process."""
    # Imported here because it takes seconds that start-up need not pay. The counter is torch's own
    # for tests; there is no stable one.
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def _compile(
    forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], options: CompileOptions
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    if options.backend != "inductor":
        return torch.compile(forward, fullgraph=True, backend=options.backend)
    try:
        if options.options:
            own: dict[str, str | int | Callable[..., object]] = dict(options.options)  # type: ignore[arg-type]  # floats are fine
            return torch.compile(forward, fullgraph=True, options=own)
        return torch.compile(forward, fullgraph=True, mode=options.mode)
    except RuntimeError as error:
        raise ConfigError(f"torch_compile_config: {error}") from None
