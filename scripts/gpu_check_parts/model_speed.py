"""Decode and prefill speed of a model with random weights, beside what the device could reach.

The floor of a decode step is its bytes (weights and KV read once) over the measured copy rate, or
its FLOPs over the measured matrix rate, whichever takes longer; of a prefill step its FLOPs.
"""

import gc
from dataclasses import dataclass, replace
from typing import Any

import torch

from gpu_check_parts.ceilings import ceilings
from gpu_check_parts.findings import Findings
from gpu_check_parts.part import Setting
from gpu_check_parts.random_model import model_folder
from gpu_check_parts.stepping import RunnerDriver, fill_caches
from tokasaurus.config.compile_options import CompileOptions
from tokasaurus.ipc.messages.to_manager import TokenSampling
from tokasaurus.model.attention.backend import CausalModel
from tokasaurus.model.decoder import Decoder
from tokasaurus.model.registry import load_model
from tokasaurus.worker.forward_pass import ForwardOptions
from tokasaurus.worker.torch_runner import RunnerSettings, TorchRunner

PAGE_SIZE = 16
_GREEDY = TokenSampling(temperature=0.0)
_RANDOM = TokenSampling(temperature=1.0, seed=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to measure of one model."""

    decodes: tuple[tuple[int, int], ...]
    """(sequences, tokens in the cache of each)"""
    num_decode_steps: int
    num_prompts: int
    prompt_len: int
    num_prefill_steps: int


LOADS = {
    "llama-1b": Load(
        decodes=((1, 1024), (64, 1024), (256, 1024), (1024, 512)),
        num_decode_steps=60,
        num_prompts=4,
        prompt_len=2048,
        num_prefill_steps=12,
    ),
    "llama-8b": Load(
        decodes=((1, 1024), (64, 1024), (256, 1024), (1024, 256)),
        num_decode_steps=40,
        num_prompts=4,
        prompt_len=2048,
        num_prefill_steps=8,
    ),
}
QUICK = Load(
    decodes=((1, 32), (4, 32)),
    num_decode_steps=6,
    num_prompts=2,
    prompt_len=24,
    num_prefill_steps=3,
)


def variants(setting: Setting) -> dict[str, dict[str, Any]]:
    """Ways to run the model, the default first."""
    compiled = CompileOptions(backend="inductor" if setting.is_cuda else "eager")
    backends = {} if setting.is_cuda else {"attention_backend": "torch", "cpu_kernels": False}
    return {
        "default": {"forward": ForwardOptions(), **backends},
        "compiled": {"forward": ForwardOptions(compile_options=compiled), **backends},
        "no graphs": {"forward": ForwardOptions(use_cudagraphs=False), **backends},
        "torch attention": {"forward": ForwardOptions(), **backends, "attention_backend": "torch"},
    }


def silent(_fraction: float, _text: str) -> None:
    """Progress that nobody follows."""


def measure_model(name: str, setting: Setting, findings: Findings) -> None:
    """Of `name` in every variant; a variant that fails is a finding too."""
    load = QUICK if setting.quick else LOADS[name]
    model = load_model(
        model_folder(name, setting.out, quick=setting.quick),
        dtype="auto",
        device=setting.device,
        model_path="native",
        load_format="dummy",
        max_model_len=setting.pick(8192, 128),
        progress=silent,
    )
    for variant, options in variants(setting).items():
        smaller = load
        if variant == "torch attention":
            smaller = replace(load, decodes=load.decodes[:2], num_decode_steps=8)
        try:
            _measure_variant(name, variant, options, model, smaller, setting, findings)
        except Exception as error:  # noqa: BLE001  (the other variants are still to be measured)
            findings.add(
                what="failed", variant=variant, error=f"{type(error).__name__}: {error}"[:2000]
            )
        gc.collect()
        if setting.is_cuda:
            torch.cuda.empty_cache()


def _measure_variant(
    name: str,
    variant: str,
    options: dict[str, Any],
    model: CausalModel,
    load: Load,
    setting: Setting,
    findings: Findings,
) -> None:
    most_tokens = max(
        size * (context + load.num_decode_steps + 32) for size, context in load.decodes
    )
    runner = TorchRunner(
        RunnerSettings(
            device=setting.device,
            page_size=PAGE_SIZE,
            kv_cache_num_tokens=max(most_tokens, 2 * load.num_prompts * load.prompt_len),
            max_tokens_per_forward=load.num_prompts * load.prompt_len,
            max_seqs_per_forward=max(size for size, _ in load.decodes),
            **options,
        ),
        lambda _progress: model,
    )
    runner.load(silent)
    runner.warm_up(silent)
    fill_caches(runner)
    driver = RunnerDriver(runner, PAGE_SIZE)
    costs = _Costs.of(model)
    copy_rate, matmul_rate = ceilings(setting)
    for sampling in (_GREEDY, _RANDOM) if variant == "default" else (_GREEDY,):
        for size, context in load.decodes:
            driver.decode(size, context, 4, sampling)
            result = driver.decode(size, context, load.num_decode_steps, sampling)
            middle = context + load.num_decode_steps / 2
            floor = max(
                costs.decode_bytes(size, middle) / copy_rate,
                costs.decode_flops(size, middle) / matmul_rate,
            )
            findings.add(
                what="decode",
                model=name,
                variant=variant,
                description=runner.description,
                sampling="greedy" if sampling is _GREEDY else "temperature 1",
                batch_size=size,
                context=context,
                milliseconds_per_step=1e3 * result.seconds_per_step,
                tokens_per_second=size / result.seconds_per_step,
                share_of_roofline=floor / result.seconds_per_step,
                device_idle_share=result.idle_share,
                num_recompiles=result.num_recompiles,
            )
    driver.prefill(load.num_prompts, load.prompt_len, 2)
    result = driver.prefill(load.num_prompts, load.prompt_len, load.num_prefill_steps)
    floor = costs.prefill_flops(load.num_prompts, load.prompt_len) / matmul_rate
    findings.add(
        what="prefill",
        model=name,
        variant=variant,
        description=runner.description,
        num_tokens=load.num_prompts * load.prompt_len,
        tokens_per_second=load.num_prompts * load.prompt_len / result.seconds_per_step,
        share_of_roofline=floor / result.seconds_per_step,
        device_idle_share=result.idle_share,
        num_recompiles=result.num_recompiles,
    )


@dataclass(frozen=True, slots=True)
class _Costs:
    """Bytes and FLOPs of steps, counted from the model's own parameters."""

    layer_parameters: int
    head_parameters: int
    itemsize: int
    kv_elements_per_token: int
    attention_flops_per_pair: int
    """Of one query and one key, over all layers."""

    @classmethod
    def of(cls, model: CausalModel) -> "_Costs":
        assert isinstance(model, Decoder)
        layers = model.attention_layers
        return cls(
            layer_parameters=sum(p.numel() for p in model.layers.parameters()),
            head_parameters=model.head.weight.numel(),
            itemsize=model.dtype.itemsize,
            kv_elements_per_token=sum(2 * x.num_kv_heads * x.head_dim for x in layers),
            attention_flops_per_pair=sum(4 * x.num_heads * x.head_dim for x in layers),
        )

    def decode_bytes(self, batch_size: int, context: float) -> float:
        weights = self.layer_parameters + self.head_parameters
        return self.itemsize * (weights + batch_size * context * self.kv_elements_per_token)

    def decode_flops(self, batch_size: int, context: float) -> float:
        weights = self.layer_parameters + self.head_parameters
        return batch_size * (2 * weights + context * self.attention_flops_per_pair)

    def prefill_flops(self, num_prompts: int, prompt_len: int) -> float:
        pairs = prompt_len * (prompt_len + 1) / 2
        per_prompt = 2 * self.layer_parameters * prompt_len + 2 * self.head_parameters
        return num_prompts * (per_prompt + pairs * self.attention_flops_per_pair)
