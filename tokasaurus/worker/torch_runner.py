"""Runs steps with torch, on a CPU or a GPU; every slot's last token stays on the device.

Shapes: T tokens of the step, D hidden size, S rows that sample, V vocabulary.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from tokasaurus.ipc.messages.to_manager import RunnerCapabilities
from tokasaurus.ipc.messages.to_worker import StepInput
from tokasaurus.model.attention.backend import AttentionBackend, CausalModel
from tokasaurus.model.attention.cpu_backend import CpuBackend
from tokasaurus.model.attention.registry import create_backend
from tokasaurus.model.decoder import Decoder
from tokasaurus.model.device_copy import to_device
from tokasaurus.model.kernels.decode_step import DecodeStep
from tokasaurus.model.kernels.fused_decoder import FusedDecoder
from tokasaurus.model.kernels.install import with_cpu_kernels
from tokasaurus.model.kernels.sampling import KernelOperations
from tokasaurus.model.quantization.scheme import NO_QUANTIZATION, QuantizationScheme
from tokasaurus.model.sampling.operations import TORCH_OPERATIONS, SamplingOperations
from tokasaurus.tokenization.tokenizer import Tokenizer
from tokasaurus.worker.device_batch import BatchBuilder, DeviceBatch
from tokasaurus.worker.device_clock import DeviceClock
from tokasaurus.worker.forward_pass import ForwardOptions, ForwardPass
from tokasaurus.worker.fused_decodes import DecodedStep, FusedDecodes
from tokasaurus.worker.grammar_tokens import GrammarTokens
from tokasaurus.worker.memory import (
    ActivationMemory,
    KVRequest,
    choose_num_blocks,
    free_device_bytes,
    naming_what_to_lower,
)
from tokasaurus.worker.micro_batches import MicroBatch, MicroBatcher
from tokasaurus.worker.replica import ALONE_REPLICA, Replica
from tokasaurus.worker.runner import GoesOn, Progress, StepHandle, always
from tokasaurus.worker.slot_table import SlotTable
from tokasaurus.worker.stage_exchange import StageExchange
from tokasaurus.worker.step_handle import StepResult, TorchStepHandle
from tokasaurus.worker.step_sampler import StepSampler
from tokasaurus.worker.warmup import num_warm_up_blocks, warm_up_steps

_logger = logging.getLogger(__name__)

_FOR_WEIGHTS = "Use a smaller model or dtype, tp_size or pp_size, or free the device's memory."
_FOR_ACTIVATIONS = "Lower max_tokens_per_forward or max_seqs_per_forward."
_FOR_CACHE = "Lower kv_cache_num_tokens or kv_cache_memory_fraction."
_FOR_GRAPHS = "Lower kv_cache_memory_fraction or cudagraph_max_size, or set use_cudagraphs=F."


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerSettings:
    """What the runner needs from the options."""

    device: torch.device
    attention_backend: str = "auto"
    cpu_kernels: bool = True
    quantization: QuantizationScheme = NO_QUANTIZATION
    page_size: int = 16
    kv_cache_num_tokens: int | None = None
    kv_cache_memory_fraction: float = 0.8
    kv_cache_dtype: str = "auto"
    forward: ForwardOptions = field(default_factory=ForwardOptions)
    max_tokens_per_forward: int = 2048
    max_seqs_per_forward: int = 1024
    replica: Replica = ALONE_REPLICA
    load_tokenizer: Callable[[], Tokenizer] | None = None
    """For grammars, which need the texts of tokens; called when the first one comes."""


class TorchRunner:
    """`ModelRunner` over a `CausalModel`."""

    def __init__(
        self, settings: RunnerSettings, load_model: Callable[[Progress], CausalModel]
    ) -> None:
        self._settings = settings
        self._device = settings.device
        self._load_model = load_model
        self._model: CausalModel
        self._backend: AttentionBackend
        self._forward_pass: ForwardPass
        self._exchange: StageExchange | None = None
        self._decodes: FusedDecodes | None = None
        self._last_tokens: torch.Tensor
        self._last_tokens_on_host: np.ndarray
        """The same memory, where the device is the host."""
        self._num_blocks = 0
        self._hidden_size = 0
        """Of the hidden states that the last step gave."""

    @property
    def capabilities(self) -> RunnerCapabilities:
        return RunnerCapabilities(
            mixed_batches=True,
            hydragen=self._backend.supports_hydragen,
            async_steps=self._device.type != "cpu" or self._settings.replica.parallel.pp_size > 1,
            repeats=self._decodes is not None,
        )

    @property
    def num_blocks(self) -> int:
        return self._num_blocks

    @property
    def max_model_len(self) -> int:
        return self._model.max_model_len

    @property
    def vocab_size(self) -> int:
        return self._model.vocab_size

    @property
    def hidden_size(self) -> int:
        return self._hidden_size

    @property
    def description(self) -> str:
        dtype = str(self._model.dtype).removeprefix("torch.")
        parallel, parts = self._settings.replica.parallel, ""
        if not parallel.is_alone:
            parts = f", pp_size {parallel.pp_size}, tp_size {parallel.tp_size}"
        if not self._settings.quantization.is_plain:
            dtype += f", weights {self._settings.quantization.name}"
        path, backend = self._forward_pass.path, self._backend.name
        return f"{path}, {self._device}, {dtype}, attention {backend}{parts}"

    def load(self, progress: Progress) -> None:
        settings = self._settings
        settings.quantization.check_place(self._device.type, settings.cpu_kernels)
        with naming_what_to_lower("loading the weights", self._device, _FOR_WEIGHTS):
            self._model = self._load_model(progress)
        replica = settings.replica
        if replica.division is not None:
            assert isinstance(self._model, Decoder), "only decoders are divided among ranks"
            self._model.divide_tokens(replica.division)
        if replica.links is not None:
            assert isinstance(self._model, Decoder), "only decoders are divided into stages"
            self._exchange = StageExchange(
                replica.links,
                self._model.hidden_size,
                self._model.dtype,
                self._device,
            )
        progress(1.0, f"attention backend {self._settings.attention_backend}")
        self._backend = create_backend(
            self._attention_backend_name(),
            self._model.attention_layers,
            page_size=self._settings.page_size,
            dtype=self._model.dtype,
            device=self._device,
            kv_cache_dtype=self._settings.kv_cache_dtype,
        )
        if self._settings.cpu_kernels and self._device.type == "cpu":
            self._model = with_cpu_kernels(self._model, self._backend, self._settings.quantization)
        self._forward_pass = ForwardPass(
            self._model,
            self._backend,
            self._device,
            self._settings.forward,
            page_size=self._settings.page_size,
            max_seqs=self._settings.max_seqs_per_forward,
        )
        self._reset()

    def _sampling_operations(self) -> SamplingOperations:
        if self._settings.cpu_kernels and isinstance(self._backend, CpuBackend):
            return KernelOperations(self._backend.kernels)
        return TORCH_OPERATIONS

    def _attention_backend_name(self) -> str:
        name = self._settings.attention_backend
        plain = self._device.type == "cpu" and not self._settings.cpu_kernels
        return "torch" if plain and name == "auto" else name

    def warm_up(self, progress: Progress) -> None:
        settings = self._settings
        steps = warm_up_steps(
            max_tokens=settings.max_tokens_per_forward,
            max_seqs=settings.max_seqs_per_forward,
            max_model_len=self._model.max_model_len,
            page_size=settings.page_size,
            on_cpu=self._device.type == "cpu",
        )
        activations = ActivationMemory(self._device)
        for i, step in enumerate(steps):
            progress(i / len(steps), _warm_up_text(step))
            with naming_what_to_lower(_warm_up_text(step), self._device, _FOR_ACTIVATIONS):
                if i == 0:
                    self._allocate(num_warm_up_blocks(steps))
                    activations.start()
                self.execute(step).result()
        peak_bytes = activations.peak_bytes()
        self._allocate(1)  # the warm-up's cache must not count as used
        self._num_blocks = choose_num_blocks(
            KVRequest(
                num_tokens=settings.kv_cache_num_tokens,
                memory_fraction=settings.kv_cache_memory_fraction,
                page_size=settings.page_size,
                bytes_per_block=self._backend.kv_bytes_per_block(),
                max_model_len=self._model.max_model_len,
            ),
            max(0, free_device_bytes(self._device) - peak_bytes),
            self._device.type,
        )
        fewest = torch.tensor([self._num_blocks], device=self._device)
        self._num_blocks = int(settings.replica.parallel.replica.all_reduce_min(fewest).item())
        self._reset()
        with naming_what_to_lower("allocating the KV cache", self._device, _FOR_CACHE):
            self._allocate(self._num_blocks)
        with naming_what_to_lower("capturing graphs", self._device, _FOR_GRAPHS):
            self._forward_pass.capture_graphs(progress)
        self._forward_pass.finish_warm_up()
        _logger.info(
            "KV cache: %d blocks of %d tokens, %.2f GiB",
            self._num_blocks,
            settings.page_size,
            self._num_blocks * self._backend.kv_bytes_per_block() / 2**30,
        )

    def _allocate(self, num_blocks: int) -> None:
        """Make a KV cache, and what steps over it share."""
        self._decodes = None  # it holds the earlier cache
        self._backend.allocate(num_blocks)
        model, backend = self._model, self._backend
        if (
            isinstance(model, FusedDecoder)
            and isinstance(backend, CpuBackend)
            and self._settings.replica.parallel.is_alone
        ):
            self._decodes = FusedDecodes(
                DecodeStep(model, backend, self._sampler.max_logits_rows),
                self._builder,
                self._sampler,
            )

    def _reset(self) -> None:
        """Forget all slots; a KV cache has to be allocated again."""
        model, page_size = self._model, self._settings.page_size
        table = SlotTable(
            max_blocks_per_slot=-(-model.max_model_len // page_size) + 1,
            vocab_size=model.vocab_size,
        )
        self._builder = BatchBuilder(table, page_size)
        self._set_last_tokens(torch.zeros(table.capacity, dtype=torch.int64, device=self._device))
        self._sampler = StepSampler(
            model, self._device, self._load_grammar_tokens, self._sampling_operations()
        )
        self._micro_batcher = MicroBatcher(self._settings.replica.parallel.pp_size)
        self._clock = DeviceClock()
        if self._exchange is not None:
            self._exchange.finish()

    def execute(self, step: StepInput, goes_on: GoesOn = always) -> StepHandle:
        if self._decodes is None:
            return self._launch(step, self._micro_batches(step))
        self._apply(step)
        tokens = self._decodes.run(step, self._last_tokens_on_host, goes_on)
        if tokens is not None:
            return DecodedStep(step.step_id, tokens)
        return self._launch(step, [MicroBatch(step)])

    def _micro_batches(self, step: StepInput) -> Iterator[MicroBatch]:
        """Each is applied when it is taken."""
        for micro_batch in self._micro_batcher.split(step):
            self._apply(micro_batch.step)
            yield micro_batch

    @torch.inference_mode()
    def _launch(self, step: StepInput, micro_batches: Iterable[MicroBatch]) -> TorchStepHandle:
        parts = [self._run(micro_batch) for micro_batch in micro_batches]
        outcome = StepResult.join(parts)
        timing = None
        if self._device.type == "cuda":
            outcome.start_copy_to_host()
            timing = self._clock.end_step()
        return TorchStepHandle(
            step.step_id,
            outcome,
            self._forward_pass.take_num_recompiles(),
            timing,
            0.0 if self._exchange is None else self._exchange.take_wait_seconds(),
        )

    def _apply(self, step: StepInput) -> None:
        """Take in what a step or a micro-batch changes."""
        self._builder.apply(step)
        if self._settings.replica.parallel.is_last_stage:
            self._sampler.apply(step)
        if len(self._last_tokens) < self._builder.table.capacity:
            self._grow_last_tokens()

    def _run(self, micro_batch: MicroBatch) -> StepResult:
        """A micro-batch that has been applied."""
        step = micro_batch.step
        batch = self._builder.build(step)
        parallel, exchange = self._settings.replica.parallel, self._exchange
        result = StepResult.nothing(self._device)
        result.rows = micro_batch.rows
        if not len(batch.positions):
            return result
        prefill_ids = self._to_device(self._inside_vocabulary(batch.prefill_ids))
        hidden_TD = self._forward_pass.run(
            self._inputs(batch, prefill_ids), batch.positions, batch.attention, self._start_clock
        )
        self._hidden_size = hidden_TD.shape[1]
        if parallel.is_last_stage:
            result.prompt_scores = self._sampler.score_prompts(batch, hidden_TD, prefill_ids)
            pooled = self._sampler.pool_prompts(step, hidden_TD)
            result.pooled = [] if pooled is None else [pooled]
            if len(batch.sampled_tokens):
                result.sampled = self._sampler.sample(hidden_TD, batch, self._forward_pass.draw)
                self._keep_tokens(batch.sampled_slots, result.sampled.token_ids)
        elif exchange is not None:
            exchange.send_hidden(hidden_TD)
            if parallel.is_first_stage and len(batch.sampled_tokens):
                exchange.expect_tokens(batch.sampled_slots)
        return result

    def _inputs(self, batch: DeviceBatch, prefill_ids: torch.Tensor) -> torch.Tensor:
        """Token ids, or what the stage before made of them."""
        if self._exchange is not None:
            if not self._settings.replica.parallel.is_first_stage:
                return self._exchange.receive_hidden(len(batch.positions))
            for slots, token_ids in self._exchange.receive_tokens(batch.decode_slots):
                self._last_tokens[self._to_device(slots)] = token_ids
        last_tokens = self._last_tokens[self._to_device(batch.decode_slots)]
        return torch.cat([prefill_ids, last_tokens]) if len(prefill_ids) else last_tokens

    def _keep_tokens(self, slots: np.ndarray, token_ids: torch.Tensor) -> None:
        """Where the next step finds them."""
        # A row with a NaN has token -1; what runs after it until the manager ends it is token 0.
        token_ids = token_ids.clamp_min(0)
        if self._exchange is None:
            self._last_tokens[self._to_device(slots)] = token_ids
        else:
            self._exchange.send_tokens(token_ids)

    def _inside_vocabulary(self, ids: np.ndarray) -> np.ndarray:
        """Front ends refuse other ids; one that slips through must not end everyone's worker."""
        if not len(ids) or (ids.min() >= 0 and ids.max() < self._model.vocab_size):
            return ids
        _logger.error("token ids outside the vocabulary were replaced; a front end let them pass")
        return ids.clip(0, self._model.vocab_size - 1)

    def _load_grammar_tokens(self) -> GrammarTokens:
        load_tokenizer = self._settings.load_tokenizer
        assert load_tokenizer is not None, "a grammar came to a runner without a tokenizer"
        return GrammarTokens(load_tokenizer(), self._model.vocab_size)

    def _start_clock(self) -> None:
        if self._device.type == "cuda":
            self._clock.start_step()

    def _grow_last_tokens(self) -> None:
        missing = self._builder.table.capacity - len(self._last_tokens)
        self._set_last_tokens(torch.nn.functional.pad(self._last_tokens, (0, missing)))

    def _set_last_tokens(self, tokens: torch.Tensor) -> None:
        self._last_tokens = tokens
        if self._device.type == "cpu":
            self._last_tokens_on_host = tokens.numpy()

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        return to_device(array, self._device)


def _warm_up_text(step: StepInput) -> str:
    if step.prefill_ids.size:
        return f"prefill of {step.prefill_ids.size} tokens"
    assert step.decode_slots is not None, "a warm-up step names its decodes"
    return f"decode of {step.decode_slots.size} sequences"
