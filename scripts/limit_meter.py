"""What this machine's CPU could reach at best on the offline workloads, measured when asked.

A limit counts the model's own linear layers (all of one forward pass, each with its own weights) at
the batch's size, in the fastest way that is available here, and what attention must cost at the
measured memory bandwidth and matrix rate. Nothing else: no norms, no sampling, no scheduling.

Shapes: M rows, K input features, N output features.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from workloads import Workload

from tokasaurus.model.kernels.linear import PackedLinear
from tokasaurus.model.kernels.loader import kernels_available, load_kernels
from tokasaurus.model.quantization.scheme import quantization_scheme

QUANTIZATIONS = ("int8", "int8_weight_only", "int4_weight_only")
MATRIX_ROWS = 512
"""Rows at which a product runs at the machine's full rate."""
MOST_ROUNDS = 100
Linear = Callable[[torch.Tensor], torch.Tensor]
Pack = Callable[[torch.Tensor], Linear]
Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The numbers of config.json that cost depends on."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @classmethod
    def read(cls, folder: Path) -> "Shape":
        config = json.loads((folder / "config.json").read_text())
        heads = config["num_attention_heads"]
        return cls(
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            vocab=config["vocab_size"],
        )

    @property
    def layer_weights(self) -> list[tuple[int, int]]:
        """(N, K) of one layer's fused projections."""
        q = self.heads * self.head_dim
        return [
            (q + 2 * self.kv_heads * self.head_dim, self.hidden),
            (self.hidden, q),
            (2 * self.intermediate, self.hidden),
            (self.hidden, self.intermediate),
        ]

    @property
    def layer_parameters(self) -> int:
        return self.layers * sum(n * k for n, k in self.layer_weights)

    @property
    def parameters(self) -> int:
        return self.layer_parameters + self.vocab * self.hidden

    def attention_flops(self, num_pairs: float) -> float:
        """Of all layers, for that many pairs of a query and a key."""
        return 4.0 * self.layers * self.heads * self.head_dim * num_pairs

    def kv_bytes(self, num_tokens: float, element_size: int) -> float:
        return 2.0 * self.layers * self.kv_heads * self.head_dim * num_tokens * element_size


def mean_seconds(
    runs: Sequence[Callable[[], object]],
    clock: Clock,
    budget_seconds: float,
    least_rounds: int = 3,
) -> list[float]:
    """Means of `least_rounds` or more, after one that does not count; the budget is for each.

    A workload takes the sum of its passes, slow ones included, so means are what it compares with.
    The runs take turns. Measured one after the other, the fastest would be the one that met the
    machine's best moment, and a limit would be what no longer run can reach.
    """
    times: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    started = clock()
    for num_rounds in range(MOST_ROUNDS):
        if num_rounds >= least_rounds and clock() - started >= budget_seconds * len(runs):
            break
        for run, own in zip(runs, times, strict=True):
            before = clock()
            run()
            own.append(clock() - before)
    return [statistics.fmean(own) for own in times]


def _plain(weight: torch.Tensor) -> Linear:
    return lambda x: F.linear(x, weight)


def _packed_by_onednn(weight: torch.Tensor) -> Linear:
    reordered = torch.ops.mkldnn._reorder_linear_weight(weight)
    none: list[float] = []
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, reordered, None, "none", none, "")


def _packed_by_us(weight: torch.Tensor) -> Linear:
    return PackedLinear(load_kernels(), weight, None)


def _quantized_by_us(quantization: str, weight: torch.Tensor) -> Linear:
    weight_format = quantization_scheme(quantization, None).layers
    return PackedLinear(load_kernels(), weight, None, weight_format=weight_format)


def plain_ways(dtype: torch.dtype) -> dict[str, Pack]:
    """Ways to compute with weights in `dtype`."""
    found: dict[str, Pack] = {}
    if dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        # Elsewhere torch computes in bfloat16 twenty times slower than in float32.
        found |= {"F.linear": _plain, "packed oneDNN": _packed_by_onednn}
    if kernels_available():
        found["our kernels"] = _packed_by_us
    return found or {"F.linear": _plain}


def quantized_ways() -> dict[str, Pack]:
    if not kernels_available():
        return {}
    return {name: partial(_quantized_by_us, name) for name in QUANTIZATIONS}


class LinearPass:
    """All linear layers of one forward pass, the head on all rows, held in one way."""

    def __init__(self, shape: Shape, dtype: torch.dtype, pack: Pack) -> None:
        sizes = [*(shape.layer_weights * shape.layers), (shape.vocab, shape.hidden)]
        self._dtype = dtype
        self._layers = [(pack(torch.randn(n, k).mul_(0.02).to(dtype)), k) for n, k in sizes]

    def with_rows(self, num_rows: int) -> Callable[[], None]:
        """Runs them once on that many rows."""
        widths = {k for _, k in self._layers}
        inputs = {k: torch.randn(num_rows, k).to(self._dtype) for k in widths}

        def forward() -> None:
            for layer, k in self._layers:
                layer(inputs[k])

        return forward


class MemoryReader:
    """Reads 128 MiB in the ways there are: a sum; one row times a packed weight, whose panels are
    several streams at a time. The latter comes within 2% of a loop that does nothing but load."""

    def __init__(self) -> None:
        data = torch.ones(1 << 25)
        self.num_bytes = data.nbytes
        self.ways: list[Callable[[], object]] = [data.sum]
        if kernels_available():
            product, row = _packed_by_us(data.view(1 << 14, 1 << 11)), torch.ones(1, 1 << 11)
            self.ways.append(lambda: product(row))

    def bandwidth(self, clock: Clock) -> float:
        """Bytes per second of the fastest way."""
        return self.num_bytes / min(mean_seconds(self.ways, clock, 0.2))


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What was measured."""

    pass_seconds: Callable[[int], float]
    """of the linear layers, per number of rows"""
    weight_bytes: int
    bandwidth: float
    """bytes/s"""
    attention_rate: float
    """FLOP/s of products in the activations' type"""
    element_size: int
    """bytes of the KV cache's elements"""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What a workload could reach; rates in tokens/s."""

    output_rate: float
    prefill_rate: float
    decode_rate: float
    """Of output tokens after the first ones; 0 if there are none."""
    ttft_seconds: float
    """Of the last prompt."""


def limit_of(workload: Workload, shape: Shape, machine: Machine) -> Limit:
    n, shared, own = workload.num_seqs, workload.num_shared, workload.num_own
    num_steps = workload.num_output_tokens - 1
    num_prompt_tokens = shared + n * own
    linear = num_prompt_tokens * machine.pass_seconds(MATRIX_ROWS) / MATRIX_ROWS
    pairs = shared**2 / 2 + n * own * (shared + own / 2)
    prefill = linear * shape.layer_parameters / shape.parameters
    prefill += shape.attention_flops(pairs) / machine.attention_rate
    one_pass = machine.pass_seconds(n) if num_steps else 0.0
    if n == 1:
        one_pass = min(one_pass, machine.weight_bytes / machine.bandwidth)
    # Each sequence reads its own keys and values; what all share is one dense product.
    num_read = n * (own + workload.num_output_tokens / 2)
    step = one_pass + shape.kv_bytes(num_read, machine.element_size) / machine.bandwidth
    step += shape.attention_flops(n * shared) / machine.attention_rate
    seconds = prefill + num_steps * step
    return Limit(
        output_rate=n * workload.num_output_tokens / seconds,
        prefill_rate=n * (shared + own) / prefill,
        decode_rate=n / step if num_steps else 0.0,
        ttft_seconds=prefill,
    )


class LimitMeter:
    """Measures the limits of workloads again and again, in little time each.

    Holds the model's linear layers, random, in every plain way, and in the kernels' quantised one
    if `quantization` is not "none".
    """

    @torch.inference_mode()
    def __init__(self, shape: Shape, dtype: torch.dtype, quantization: str, clock: Clock) -> None:
        self._shape, self._dtype, self._clock = shape, dtype, clock
        self._plain = [LinearPass(shape, dtype, pack) for pack in plain_ways(dtype).values()]
        self._layers = self._plain
        if quantization != "none":
            self._layers = [LinearPass(shape, dtype, quantized_ways()[quantization])]
        bits = 4.5 if quantization.startswith("int4") else 8
        weight_size = dtype.itemsize if quantization == "none" else bits / 8
        self._weight_bytes = int(shape.parameters * weight_size)
        self._reader = MemoryReader()

    @torch.inference_mode()
    def measure(self, workload: Workload) -> Limit:
        """Takes some seconds."""
        num_rows = workload.num_seqs
        plain = self._fastest(self._plain, MATRIX_ROWS)
        seconds = {MATRIX_ROWS: plain}
        if self._layers is not self._plain:
            seconds[MATRIX_ROWS] = self._fastest(self._layers, MATRIX_ROWS)
        decodes = workload.num_output_tokens > 1
        if decodes and num_rows == 1:
            seconds[1], bandwidth = self._single_row()
        else:
            bandwidth = self._reader.bandwidth(self._clock)
            if decodes and num_rows not in seconds:
                seconds[num_rows] = self._fastest(self._layers, num_rows)
        machine = Machine(
            pass_seconds=seconds.__getitem__,
            weight_bytes=self._weight_bytes,
            bandwidth=bandwidth,
            attention_rate=2.0 * self._shape.parameters * MATRIX_ROWS / plain,
            element_size=self._dtype.itemsize,
        )
        return limit_of(workload, self._shape, machine)

    def _fastest(self, passes: list[LinearPass], num_rows: int) -> float:
        runs = [layers.with_rows(num_rows) for layers in passes]
        return min(mean_seconds(runs, self._clock, 0.5))

    def _single_row(self) -> tuple[float, float]:
        """Seconds of a pass over one row, and the bandwidth: of such a pass, if it is the best."""
        runs = [layers.with_rows(1) for layers in self._layers]
        if self._weight_bytes < self._reader.num_bytes:
            # The reader would drive out what a cache may hold from one pass to the next.
            one_pass = min(mean_seconds(runs, self._clock, 0.3))
            return one_pass, self._reader.bandwidth(self._clock)
        times = mean_seconds([*runs, *self._reader.ways], self._clock, 0.3)
        one_pass, read = min(times[: len(runs)]), min(times[len(runs) :])
        return one_pass, max(self._reader.num_bytes / read, self._weight_bytes / one_pass)
