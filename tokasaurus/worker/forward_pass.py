"""One forward pass: plans the step's attention and runs the model, compiled or not, or its graph.

Shapes: T tokens of the step, D hidden size.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from tokasaurus.config.compile_options import CompileOptions
from tokasaurus.model.attention.backend import (
    AttentionBackend,
    AttentionBatch,
    CausalModel,
    GraphBackend,
)
from tokasaurus.model.decoder import Decoder
from tokasaurus.model.device_copy import to_device
from tokasaurus.model.sampling.dense_draw import Draw, compiled_draw
from tokasaurus.model.sampling.sampler import SamplingBatch
from tokasaurus.worker.compilation import CompiledModel, num_compilations
from tokasaurus.worker.cuda_graphs import Capturer, CudaCapturer, DecodeGraphs, graph_sizes
from tokasaurus.worker.draw_graphs import DrawGraphs, is_plain

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardOptions:
    """How the model is run."""

    compile_options: CompileOptions | None = None
    """None: it is not compiled."""
    use_cudagraphs: bool = True
    """Where the device, the model and its attention backend can."""
    cudagraph_max_size: int = 256
    cudagraph_step: int = 16


class ForwardPass:
    """What lies between a step's token ids and its hidden states."""

    def __init__(
        self,
        model: CausalModel,
        backend: AttentionBackend,
        device: torch.device,
        options: ForwardOptions,
        *,
        page_size: int,
        max_seqs: int,
    ) -> None:
        """Raises ConfigError where the model can't be compiled."""
        self._decoder = model if isinstance(model, Decoder) else None
        if options.compile_options is not None:
            model = CompiledModel(model, backend, options.compile_options)
        self._model = model
        self._backend = backend
        self._device = device
        self._options = options
        self._page_size = page_size
        self._max_seqs = max_seqs
        self._graphs: DecodeGraphs | None = None
        self._draw_graphs: DrawGraphs | None = None
        self._replayed_size: int | None = None
        self._num_compilations = 0

    @property
    def path(self) -> str:
        """The model's, and what was done to it."""
        return f"{self._model.path}, CUDA graphs" if self._graphs else self._model.path

    @torch.inference_mode()
    def capture_graphs(
        self,
        progress: Callable[[float, str], None],
        capturer: Capturer | None = None,
        draw: Draw | None = None,
    ) -> None:
        """Capture decode steps, if they are to be; call when the KV cache is where it will stay.

        `capturer` and `draw` default to the GPU's own; without a GPU there is no capturer.
        """
        if capturer is None and self._device.type == "cuda":
            capturer, draw = CudaCapturer(self._device), compiled_draw()
        if capturer is None or not self._options.use_cudagraphs:
            return
        if self._decoder is None or not self._backend.supports_cuda_graphs:
            _logger.warning(
                "decode steps run without CUDA graphs: those need a native decoder and an "
                "attention backend that plans into fixed buffers, which %s on %s attention are not",
                self._model.path,
                self._backend.name,
            )
            return
        options = self._options
        sizes = graph_sizes(options.cudagraph_max_size, options.cudagraph_step, self._max_seqs)
        graphs = DecodeGraphs(
            sizes,
            lambda ids, positions: self._model.forward(ids, positions, self._backend),
            cast(GraphBackend, self._backend),
            inputs_T=self._decoder.no_inputs(max(sizes)),
            page_size=self._page_size,
            device=self._device,
            capturer=capturer,
        )
        draws = None
        # Where each rank has a share of the vocabulary, the ranks draw together.
        if draw is not None and self._decoder.stage.is_last and self._decoder.parallel.tp_size == 1:
            draws = DrawGraphs(self._model, max(sizes), device=self._device, draw=draw)

        def capture_draw(size: int, hidden_TD: torch.Tensor) -> None:
            if draws is not None:
                draws.capture(size, hidden_TD, capturer)

        began = time.perf_counter()
        graphs.capture(-(-self._model.max_model_len // self._page_size), progress, capture_draw)
        self._graphs, self._draw_graphs = graphs, draws
        seconds = time.perf_counter() - began
        _logger.info("captured decode steps of %d sizes in %.1f s", len(sizes), seconds)

    def finish_warm_up(self) -> None:
        """From now on, compilations count as recompilations."""
        self.take_num_recompiles()

    def take_num_recompiles(self) -> int:
        """How many graphs were compiled since the last call."""
        if self._options.compile_options is None and self._device.type != "cuda":
            return 0  # on a GPU, the draw of tokens is compiled in any case
        before, self._num_compilations = self._num_compilations, num_compilations()
        return self._num_compilations - before

    def run(
        self,
        inputs_T: torch.Tensor,
        positions_T: np.ndarray,
        attention: AttentionBatch,
        launching: Callable[[], None] = lambda: None,
    ) -> torch.Tensor:
        """Hidden states TD: final ones may be overwritten by the next run, those for the next stage
        are not. `positions_T` is on the host. `launching` is called when everything is prepared."""
        size = None if self._graphs is None else self._graphs.size_for(attention)
        self._replayed_size = size
        if self._graphs is not None and size is not None:
            self._graphs.prepare(size, inputs_T, positions_T, attention)
            launching()
            hidden_TD = self._graphs.replay(size, len(inputs_T))
            assert self._decoder is not None, "graphs of something else than a decoder"
            return hidden_TD if self._decoder.stage.is_last else hidden_TD.clone()
        self._backend.plan(attention)
        positions = to_device(positions_T, self._device)
        launching()
        return self._model.forward(inputs_T, positions, self._backend)

    def draw(self, batch: SamplingBatch) -> torch.Tensor | None:
        """Tokens of all rows of the last run, where its graph has one that draws them; else None.

        The next run overwrites them.
        """
        draws, size = self._draw_graphs, self._replayed_size
        if draws is None or size is None or not is_plain(batch, self._model.vocab_size):
            return None
        return draws.run(size, batch)
