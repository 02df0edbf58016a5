"""Loaded models, specs of small decoders and started runners, with what tests rarely change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tokasaurus.model.attention.backend import CausalModel
from tokasaurus.model.config import DecoderSpec, MoESpec, RopeSpec
from tokasaurus.model.parallel import ALONE, ParallelContext
from tokasaurus.model.quantization.scheme import NO_QUANTIZATION, QuantizationScheme
from tokasaurus.model.registry import LoadFormat, ModelPath, load_model
from tokasaurus.worker.torch_runner import RunnerSettings, TorchRunner

CPU = torch.device("cpu")


def silent(_fraction: float, _text: str) -> None:
    """Progress that nobody follows."""


def load(
    folder: Path,
    model_path: ModelPath = "native",
    *,
    dtype: str = "float32",
    device: torch.device = CPU,
    load_format: LoadFormat = "auto",
    max_model_len: int | None = None,
    progress: Callable[[float, str], None] = silent,
    parallel: ParallelContext = ALONE,
    quantization: QuantizationScheme = NO_QUANTIZATION,
) -> CausalModel:
    """The checkpoint on the device."""
    return load_model(
        folder,
        dtype=dtype,
        device=device,
        model_path=model_path,
        load_format=load_format,
        max_model_len=max_model_len,
        progress=progress,
        parallel=parallel,
        quantization=quantization,
    )


def started_runner(settings: RunnerSettings, load_model: Callable[[], CausalModel]) -> TorchRunner:
    """With its model, its cache and everything warm."""
    runner = TorchRunner(settings, lambda _progress: load_model())
    runner.load(silent)
    runner.warm_up(silent)
    return runner


def decoder_spec(**changes: Any) -> DecoderSpec:
    """Llama's kind, two layers of six heads of 16; `rotary_dim` is the head's unless given."""
    features: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 40,
        "intermediate_size": 72,
        "num_layers": 2,
        "num_heads": 6,
        "num_kv_heads": 2,
        "head_dim": 16,
        "norm_eps": 1e-5,
        "activation": "silu",
        **changes,
    }
    rotary_dim = features.pop("rotary_dim", features["head_dim"])
    features.setdefault("rope", _rope_spec(rotary_dim))
    features.setdefault("sliding_windows", (None,) * features["num_layers"])
    return DecoderSpec(**features)


def _rope_spec(rotary_dim: int) -> RopeSpec:
    return RopeSpec(
        kind="default",
        theta=100.0,
        rotary_dim=rotary_dim,
        default_positions=64,
        max_positions=64,
        original_positions=64,
    )


def moe_spec(num_experts: int, num_choices: int, **changes: Any) -> MoESpec:
    """In the first layer, unless told otherwise."""
    features: dict[str, Any] = {
        "intermediate_size": 24,
        "normalize_weights": True,
        "layers": frozenset({0}),
        **changes,
    }
    return MoESpec(num_experts=num_experts, num_experts_per_token=num_choices, **features)
