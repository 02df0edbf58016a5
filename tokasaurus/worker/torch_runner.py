"""Runs steps with torch, on a CPU or a GPU; every slot's last token stays on the device.

Shapes: T tokens of the step, D hidden size, S rows that sample, V vocabulary.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from tokasaurus.ipc.messages.to_manager import RunnerCapabilities, StepOutput
from tokasaurus.ipc.messages.to_worker import StepInput
from tokasaurus.model.attention.backend import AttentionBackend, CausalModel
from tokasaurus.model.attention.registry import create_backend
from tokasaurus.model.device_copy import to_device
from tokasaurus.model.kernels.install import with_cpu_kernels
from tokasaurus.model.sampling.sampler import SampledTokens, sample
from tokasaurus.tokenization.tokenizer import Tokenizer
from tokasaurus.worker.device_batch import BatchBuilder, DeviceBatch
from tokasaurus.worker.device_clock import DeviceClock, StepTiming
from tokasaurus.worker.forward_pass import ForwardOptions, ForwardPass
from tokasaurus.worker.grammar_tokens import GrammarTokens
from tokasaurus.worker.memory import (
    ActivationMemory,
    KVRequest,
    choose_num_blocks,
    free_device_bytes,
    naming_what_to_lower,
)
from tokasaurus.worker.prompt_pooling import PooledPrompts, PromptPooler
from tokasaurus.worker.prompt_scoring import PromptScorer, PromptScores
from tokasaurus.worker.runner import Progress
from tokasaurus.worker.slot_adjustments import SlotAdjustments
from tokasaurus.worker.slot_grammars import SlotGrammars
from tokasaurus.worker.slot_table import SlotTable
from tokasaurus.worker.warmup import num_warm_up_blocks, warm_up_steps

_logger = logging.getLogger(__name__)

_FOR_WEIGHTS = "Use a smaller model or dtype, tp_size or pp_size, or free the device's memory."
_FOR_ACTIVATIONS = "Lower max_tokens_per_forward or max_seqs_per_forward."
_FOR_CACHE = "Lower kv_cache_num_tokens or kv_cache_memory_fraction."
_FOR_GRAPHS = "Lower kv_cache_memory_fraction or cudagraph_max_size, or set use_cudagraphs=F."
_MAX_LOGITS_BYTES = 64 << 20
"""Logits of one pass: more rows are sampled pass by pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerSettings:
    """What the runner needs from the options."""

    device: torch.device
    attention_backend: str = "auto"
    cpu_kernels: bool = True
    page_size: int = 16
    kv_cache_num_tokens: int | None = None
    kv_cache_memory_fraction: float = 0.8
    kv_cache_dtype: str = "auto"
    forward: ForwardOptions = field(default_factory=ForwardOptions)
    max_tokens_per_forward: int = 2048
    max_seqs_per_forward: int = 1024
    load_tokenizer: Callable[[], Tokenizer] | None = None
    """For grammars, which need the texts of tokens; called when the first one comes."""


@dataclass(slots=True)
class TorchStepHandle:
    """A launched step; its outputs are on their way to the host."""

    step_id: int
    sampled: SampledTokens
    prompt_scores: list[PromptScores]
    pooled: PooledPrompts | None
    num_recompiles: int
    timing: StepTiming | None
    """None where steps run synchronously."""

    def result(self) -> StepOutput:
        if self.timing is not None:
            self.timing.wait()
        sampled = self.sampled
        return StepOutput(
            step_id=self.step_id,
            token_ids=sampled.token_ids.numpy().astype(np.int32),
            logprobs=_array(sampled.logprobs),
            top_ids=None if sampled.top_ids is None else sampled.top_ids.numpy().astype(np.int32),
            top_logprobs=_array(sampled.top_logprobs),
            prompt_logprobs=[scores.message() for scores in self.prompt_scores],
            num_recompiles=self.num_recompiles,
            device_idle_seconds=0.0 if self.timing is None else self.timing.idle_seconds,
            device_busy_seconds=0.0 if self.timing is None else self.timing.busy_seconds,
            embedded_slots=None if self.pooled is None else np.array(self.pooled.slots, np.int32),
            embeddings=None if self.pooled is None else self.pooled.vectors.numpy(),
        )


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
        self._num_blocks = 0
        self._hidden_size = 0
        """Of the hidden states that the last step gave."""

    @property
    def capabilities(self) -> RunnerCapabilities:
        return RunnerCapabilities(
            mixed_batches=True,
            hydragen=self._backend.supports_hydragen,
            async_steps=self._device.type != "cpu",
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
        return f"{self._forward_pass.path}, {self._device}, {dtype}, attention {self._backend.name}"

    def load(self, progress: Progress) -> None:
        with naming_what_to_lower("loading the weights", self._device, _FOR_WEIGHTS):
            self._model = self._load_model(progress)
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
            self._model = with_cpu_kernels(self._model, self._backend)
        self._forward_pass = ForwardPass(
            self._model,
            self._backend,
            self._device,
            self._settings.forward,
            page_size=self._settings.page_size,
            max_seqs=self._settings.max_seqs_per_forward,
        )
        self._reset()

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
                    self._backend.allocate(num_warm_up_blocks(steps))
                    activations.start()
                self.execute(step).result()
        peak_bytes = activations.peak_bytes()
        self._backend.allocate(1)  # the warm-up's cache must not count as used
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
        with naming_what_to_lower("allocating the KV cache", self._device, _FOR_CACHE):
            self._backend.allocate(self._num_blocks)
        with naming_what_to_lower("capturing graphs", self._device, _FOR_GRAPHS):
            self._forward_pass.capture_graphs(progress)
        self._forward_pass.finish_warm_up()
        self._reset()
        _logger.info(
            "KV cache: %d blocks of %d tokens, %.2f GiB",
            self._num_blocks,
            settings.page_size,
            self._num_blocks * self._backend.kv_bytes_per_block() / 2**30,
        )

    def _reset(self) -> None:
        """Forget all slots."""
        model, page_size = self._model, self._settings.page_size
        table = SlotTable(
            max_blocks_per_slot=-(-model.max_model_len // page_size) + 1,
            vocab_size=model.vocab_size,
        )
        self._builder = BatchBuilder(table, page_size)
        self._last_tokens = torch.zeros(table.capacity, dtype=torch.int64, device=self._device)
        self._adjustments = SlotAdjustments(self._device, model.vocab_size)
        self._grammars = SlotGrammars(self._load_grammar_tokens)
        self._max_logits_rows = max(1, _MAX_LOGITS_BYTES // (4 * model.vocab_size))
        self._prompt_scorer = PromptScorer(model, self._max_logits_rows)
        self._prompt_pooler = PromptPooler()
        self._clock = DeviceClock()

    @torch.inference_mode()
    def execute(self, step: StepInput) -> TorchStepHandle:
        batch = self._builder.build(step)
        self._adjustments.apply(step)
        self._grammars.apply(step)
        self._prompt_scorer.forget(step.freed_slots.tolist())
        self._prompt_scorer.forget(added.slot for added in step.added_slots)
        self._prompt_pooler.apply(step)
        self._grow_last_tokens()
        sampled = SampledTokens(token_ids=torch.empty(0, dtype=torch.int64))
        prompt_scores: list[PromptScores] = []
        pooled: PooledPrompts | None = None
        if len(batch.positions):
            prefill_ids = self._to_device(self._inside_vocabulary(batch.prefill_ids))
            decode_ids = self._last_tokens[self._to_device(batch.decode_slots)]
            ids_T = torch.cat([prefill_ids, decode_ids])
            hidden_TD = self._forward_pass.run(
                ids_T, batch.positions, batch.attention, self._start_clock
            )
            self._hidden_size = hidden_TD.shape[1]
            for chunk in batch.prompt_chunks:
                scores = self._prompt_scorer.score(chunk, hidden_TD, ids_T)
                if scores is not None:
                    prompt_scores.append(scores)
            pooled = self._prompt_pooler.pool(step, hidden_TD)
            if len(batch.sampled_tokens):
                sampled = self._sample(hidden_TD, batch)
        return self._send_to_host(step.step_id, sampled, prompt_scores, pooled)

    def _inside_vocabulary(self, ids: np.ndarray) -> np.ndarray:
        """Front ends refuse other ids; one that slips through must not end everyone's worker."""
        if not len(ids) or (ids.min() >= 0 and ids.max() < self._model.vocab_size):
            return ids
        _logger.error("token ids outside the vocabulary were replaced; a front end let them pass")
        return ids.clip(0, self._model.vocab_size - 1)

    def _sample(self, hidden_TD: torch.Tensor, batch: DeviceBatch) -> SampledTokens:
        rows = batch.sampled_tokens
        adjusted = batch.sampling.adjusted = self._adjustments.of_rows(batch.sampled_slots)
        adjusted_slots = [] if adjusted is None else batch.sampled_slots[adjusted.rows].tolist()
        if adjusted is not None:
            adjusted.masks, must_end = self._grammars.masks(adjusted_slots)
            batch.sampling.lift_bans(adjusted.rows[must_end])
        everything = len(rows) == len(hidden_TD)
        hidden_SD = hidden_TD if everything else hidden_TD[self._to_device(rows)]
        parts = []
        for start in range(0, len(rows), self._max_logits_rows):
            which = slice(start, min(start + self._max_logits_rows, len(rows)))
            params = batch.sampling if which == slice(0, len(rows)) else batch.sampling.rows(which)
            parts.append(sample(self._model.logits(hidden_SD[which]), params))
        sampled = SampledTokens.join(parts)
        # A row with a NaN has token -1; what runs after it until the manager ends it is token 0.
        slots = self._to_device(batch.sampled_slots)
        token_ids = sampled.token_ids.clamp_min(0)
        self._last_tokens[slots] = token_ids
        if adjusted is not None:
            self._adjustments.record(adjusted, token_ids)
            self._grammars.record(adjusted_slots, sampled.token_ids, adjusted.rows)
        return sampled

    def _load_grammar_tokens(self) -> GrammarTokens:
        load_tokenizer = self._settings.load_tokenizer
        assert load_tokenizer is not None, "a grammar came to a runner without a tokenizer"
        return GrammarTokens(load_tokenizer(), self._model.vocab_size)

    def _send_to_host(
        self,
        step_id: int,
        sampled: SampledTokens,
        prompt_scores: list[PromptScores],
        pooled: PooledPrompts | None,
    ) -> TorchStepHandle:
        if self._device.type != "cuda":
            recompiles = self._forward_pass.take_num_recompiles()
            return TorchStepHandle(step_id, sampled, prompt_scores, pooled, recompiles, None)
        for result in (sampled, *prompt_scores):
            for name in ("token_ids", "logprobs", "top_ids", "top_logprobs"):
                value = getattr(result, name, None)
                if value is not None:
                    setattr(result, name, value.to("cpu", non_blocking=True))
        if pooled is not None:
            pooled.vectors = pooled.vectors.to("cpu", non_blocking=True)
        recompiles = self._forward_pass.take_num_recompiles()
        timing = self._clock.end_step()
        return TorchStepHandle(step_id, sampled, prompt_scores, pooled, recompiles, timing)

    def _start_clock(self) -> None:
        if self._device.type == "cuda":
            self._clock.start_step()

    def _grow_last_tokens(self) -> None:
        missing = self._builder.table.capacity - len(self._last_tokens)
        if missing > 0:
            self._last_tokens = torch.nn.functional.pad(self._last_tokens, (0, missing))

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        return to_device(array, self._device)


def _warm_up_text(step: StepInput) -> str:
    if step.prefill_ids.size:
        return f"prefill of {step.prefill_ids.size} tokens"
    assert step.decode_slots is not None, "a warm-up step names its decodes"
    return f"decode of {step.decode_slots.size} sequences"


def _array(tensor: torch.Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.numpy()
