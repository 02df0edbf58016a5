"""A device that takes the time a roofline says, and draws the tokens that the trace says.

It mirrors the slot table like a worker does. Linear layers take the longer of reading the weights
and computing; attention then takes the longer of reading the KV that it needs and computing.
"""

from dataclasses import dataclass

import numpy as np

from simulation.workload import STOP_TOKEN, token_ids
from tokasaurus.ipc.messages.to_manager import StepOutput
from tokasaurus.ipc.messages.to_worker import HydragenGroup, StepInput

_NO_TOKENS = np.empty(0, np.int32)

_PAIR_FLOPS = 4.0
"""Per query and key element: a product and a sum for the score, and again for the value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What a device can do at best, in a model's number format."""

    bytes_per_second: float
    flops_per_second: float
    memory_bytes: float
    step_seconds: float
    """Spent in every step whatever it holds."""
    steps_ahead: int
    max_seqs: int
    max_tokens: int
    """Per forward pass."""
    repeats: bool = False
    """Its worker honours `StepInput.max_passes`."""


HARDWARE = {
    "h200": Hardware(
        bytes_per_second=4.3e12,
        flops_per_second=790e12,
        memory_bytes=0.9 * 141e9,
        step_seconds=0.5e-3,
        steps_ahead=2,
        max_seqs=8192,
        max_tokens=16_384,
    ),
    "cpu": Hardware(
        bytes_per_second=31e9,
        flops_per_second=400e9,
        memory_bytes=4 * 2**30,
        step_seconds=1e-3,
        steps_ahead=1,
        max_seqs=256,
        max_tokens=2048,
        repeats=True,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A dense decoder in bf16, as far as its speed depends on it."""

    num_parameters: float
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int

    @property
    def weight_bytes(self) -> float:
        return 2.0 * self.num_parameters

    @property
    def kv_bytes_per_token(self) -> float:
        return 2.0 * 2 * self.num_layers * self.num_kv_heads * self.head_size

    @property
    def flops_per_token(self) -> float:
        """Of the linear layers."""
        return 2.0 * self.num_parameters

    @property
    def flops_per_pair(self) -> float:
        """Of attention, per query token and token that it sees."""
        return _PAIR_FLOPS * self.num_layers * self.num_heads * self.head_size


MODELS = {
    "1b": Model(num_parameters=1.24e9, num_layers=16, num_heads=32, num_kv_heads=8, head_size=64),
    "8b": Model(num_parameters=8.03e9, num_layers=32, num_heads=32, num_kv_heads=8, head_size=128),
    "135m": Model(num_parameters=0.135e9, num_layers=30, num_heads=9, num_kv_heads=3, head_size=64),
}


def num_kv_tokens(hardware: Hardware, model: Model) -> int:
    """Tokens whose KV fits beside the weights."""
    return int((hardware.memory_bytes - model.weight_bytes) / model.kv_bytes_per_token)


class Outputs:
    """What every request is going to generate, by request id."""

    def __init__(self) -> None:
        self._keys = np.zeros(1024, np.uint32)
        self._lens = np.zeros(1024, np.int64)

    def add(self, first_id: int, keys: np.ndarray, lens: np.ndarray) -> None:
        end = first_id + keys.size
        if end > self._keys.size:
            size = max(end, 2 * self._keys.size)
            self._keys = np.resize(self._keys, size)
            self._lens = np.resize(self._lens, size)
        self._keys[first_id:end] = keys
        self._lens[first_id:end] = lens

    def key(self, request_id: int) -> np.uint32:
        return self._keys[request_id]

    def length(self, request_id: int) -> int:
        return int(self._lens[request_id])


class SimulatedDevice:
    """Runs steps in no time, pass by pass, and says how long each pass would have taken."""

    def __init__(
        self, hardware: Hardware, model: Model, outputs: Outputs, num_slots: int, page_size: int
    ) -> None:
        """A request's id is the seed of its sampling, by which its outputs are looked up."""
        self._hardware = hardware
        self._model = model
        self._outputs = outputs
        self._page_size = page_size
        self._num_written = np.zeros(num_slots, np.int64)
        self._keys = np.zeros(num_slots, np.uint32)
        self._last_positions = np.zeros(num_slots, np.int64)
        """Where each slot's stop token stands."""
        self._decode_slots = np.empty(0, np.intp)
        self._groups: list[HydragenGroup] = []
        self._step = StepInput(step_id=-1)
        """The one that runs, or has run last."""
        self._passes: list[np.ndarray] = []
        """Its tokens so far, by pass."""
        self._seconds = 0.0
        self._has_stopped = False
        """A row of a lease has drawn its stop token, and no slot has been freed since."""

    @property
    def may_repeat(self) -> bool:
        """Whether the step that runs may have another pass."""
        return len(self._passes) < self._step.max_passes and not self._has_stopped

    def begin(self, step: StepInput) -> float:
        """Run a step's first pass: the seconds that it takes."""
        self._step, self._passes, self._seconds = step, [], 0.0
        if step.freed_slots.size:
            self._has_stopped = False
        for added in step.added_slots:
            slot, request_id = added.slot, added.sampling.seed
            self._num_written[slot] = added.num_cached_tokens
            self._keys[slot] = self._outputs.key(request_id)
            length = self._outputs.length(request_id)
            self._last_positions[slot] = added.num_prompt_tokens + length - 1
        if step.decode_slots is not None:
            self._decode_slots = step.decode_slots.astype(np.intp)
        if step.hydragen_groups is not None:
            self._groups = step.hydragen_groups
        return self._run(step.prefill_slots, step.prefill_lens, step.prefill_samples)

    def repeat(self) -> float:
        """Decode once more: the seconds that it takes."""
        return self._run(_NO_TOKENS, _NO_TOKENS, _NO_TOKENS)

    def finish(self) -> StepOutput:
        """What all passes of the step have drawn."""
        passes = self._passes
        return StepOutput(
            step_id=self._step.step_id,
            token_ids=passes[0] if len(passes) == 1 else np.stack(passes),
            execute_seconds=self._seconds,
        )

    def _run(self, prefill_slots: np.ndarray, lens: np.ndarray, samples: np.ndarray) -> float:
        seconds = self._pass_seconds(prefill_slots, lens)
        rows = self._decode_slots
        self._num_written[rows] += 1
        if prefill_slots.size:
            self._num_written[prefill_slots] += lens
            rows = np.concatenate([prefill_slots[samples], rows])
        positions = self._num_written[rows]
        drawn = token_ids(self._keys[rows], positions)
        is_last = positions == self._last_positions[rows]
        drawn[is_last] = STOP_TOKEN
        if self._step.max_passes > 1:
            self._has_stopped |= bool(is_last.any())
        self._passes.append(drawn)
        self._seconds += seconds
        return seconds

    def _pass_seconds(self, prefill_slots: np.ndarray, prefill_lens: np.ndarray) -> float:
        hardware, model = self._hardware, self._model
        num_decodes = self._decode_slots.size
        num_pairs = num_read = float(self._num_written[self._decode_slots].sum() + num_decodes)
        for group in self._groups:
            num_read -= (group.num_rows - 1) * group.num_blocks * self._page_size
        num_tokens = num_decodes
        if prefill_slots.size:
            starts = self._num_written[prefill_slots]
            lens = prefill_lens.astype(np.int64)
            num_tokens += int(lens.sum())
            num_read += float((starts + lens).sum())
            num_pairs += float((lens * starts + lens * (lens + 1) // 2).sum())
        linear = max(
            model.weight_bytes / hardware.bytes_per_second,
            model.flops_per_token * num_tokens / hardware.flops_per_second,
        )
        attention = max(
            model.kv_bytes_per_token * num_read / hardware.bytes_per_second,
            model.flops_per_pair * num_pairs / hardware.flops_per_second,
        )
        return hardware.step_seconds + linear + attention
