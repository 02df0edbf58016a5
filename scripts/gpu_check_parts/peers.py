"""transformers' continuous batching on a model's shape, and this engine on the same requests."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    GenerationConfig,
)

from gpu_check_parts.end_to_end import start_engine
from gpu_check_parts.findings import Findings
from gpu_check_parts.part import Setting
from gpu_check_parts.random_model import model_folder
from tokasaurus import SamplingParams

_MODEL = "llama-1b"
Generate = Callable[[list[list[int]], int], int]
"""Prompts and output tokens of each to the number of tokens that came out."""


def measure_transformers(setting: Setting, findings: Findings) -> None:
    """Output tokens per second, prompts included, for several batch sizes; ours first."""
    with start_engine(setting, max_seqs_per_forward=setting.pick(256, 4)) as llm:

        def ours(prompts: list[list[int]], num_output: int) -> int:
            params = SamplingParams(temperature=0, max_tokens=num_output, ignore_eos=True)
            outputs = llm.generate(prompts, params, progress=False)
            return sum(len(output.outputs[0].token_ids) for output in outputs)

        _measure("this engine", ours, setting, findings)
    model = _load(setting)
    limits = {}
    if setting.quick:
        small = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=64)
        limits["continuous_batching_config"] = small

    def theirs(prompts: list[list[int]], num_output: int) -> int:
        generation = GenerationConfig(
            max_new_tokens=num_output, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        outputs = model.generate_batch(inputs=prompts, generation_config=generation, **limits)
        return sum(len(output.generated_tokens) for output in outputs.values())

    _measure("transformers continuous batching", theirs, setting, findings)


def _load(setting: Setting) -> Any:
    config = AutoConfig.from_pretrained(model_folder(_MODEL, setting.out, quick=setting.quick))
    with setting.device:
        model = AutoModelForCausalLM.from_config(config, dtype=setting.dtype)
    model.set_attn_implementation("sdpa")
    return model.eval().requires_grad_(False)


def _measure(what: str, generate: Generate, setting: Setting, findings: Findings) -> None:
    prompt_len, num_output = setting.pick((1024, 64), (16, 4))
    generate(_prompts(1, 16, 0), 4)
    for batch_size in setting.pick((1, 64, 256), (1, 2)):
        prompts = _prompts(batch_size, prompt_len, batch_size)
        began = time.perf_counter()
        num_tokens = generate(prompts, num_output)
        seconds = time.perf_counter() - began
        findings.add(
            what=what,
            model=_MODEL,
            batch_size=batch_size,
            prompt_len=prompt_len,
            num_output_tokens=num_tokens,
            seconds=seconds,
            tokens_per_second=num_tokens / seconds,
        )


def _prompts(count: int, length: int, seed: int) -> list[list[int]]:
    return np.random.default_rng(seed).integers(300, 500, (count, length)).tolist()
