"""The whole engine in processes of its own, through `LLM`: repeated sampling and chat-like load."""

import time
from typing import Any

import numpy as np

from gpu_check_parts.findings import Findings
from gpu_check_parts.part import Setting
from gpu_check_parts.random_model import model_folder
from tokasaurus import LLM, SamplingParams

_SETTLE_SECONDS = 5.0


def measure_monkeys(setting: Setting, findings: Findings) -> None:
    """Many samples of few prompts, with Hydragen and without."""
    num_prompts, num_samples = setting.pick((2, 1024), (1, 4))
    prompt_len, num_output = setting.pick((2048, 128), (64, 6))
    params = SamplingParams(
        temperature=1.0, n=num_samples, max_tokens=num_output, ignore_eos=True, seed=1
    )
    for use_hydragen in (True, False):
        with start_engine(
            setting,
            use_hydragen=use_hydragen,
            max_seqs_per_forward=setting.pick(1024, 4),
            hydragen_min_group_size=2,
            hydragen_min_prefix_len=16,
        ) as llm:
            llm.generate(_prompts(1, 32, 9), SamplingParams(max_tokens=2), progress=False)
            _measure(
                llm,
                _prompts(num_prompts, prompt_len, 1),
                params,
                findings,
                what="monkeys",
                use_hydragen=use_hydragen,
                samples_per_prompt=num_samples,
                prompt_len=prompt_len,
            )


def measure_chat(setting: Setting, findings: Findings) -> None:
    """Prompts and outputs of lognormal lengths, as in ShareGPT's conversations."""
    random = np.random.default_rng(2)
    num_requests = setting.pick(1000, 6)
    most = setting.pick(1024, 20)
    prompt_lens = np.clip(random.lognormal(5.3, 1.0, num_requests), 4, most).astype(int)
    output_lens = np.clip(random.lognormal(5.2, 0.8, num_requests), 4, most).astype(int)
    with start_engine(setting, max_seqs_per_forward=setting.pick(1024, 4)) as llm:
        llm.generate(_prompts(1, 32, 9), SamplingParams(max_tokens=2), progress=False)
        prompts = [_prompts(1, int(n), 100 + i)[0] for i, n in enumerate(prompt_lens)]
        params = [
            SamplingParams(temperature=1.0, max_tokens=int(n), ignore_eos=True, seed=i)
            for i, n in enumerate(output_lens)
        ]
        _measure(llm, prompts, params, findings, what="chat", num_requests=num_requests)


def start_engine(setting: Setting, **options: Any) -> LLM:
    sizes: dict[str, Any] = {"max_tokens_per_forward": 8192, "max_model_len": 8192}
    if setting.quick:
        sizes = {"max_tokens_per_forward": 64, "max_model_len": 256, "kv_cache_num_tokens": 4096}
    if not setting.is_cuda:
        sizes |= {"cpu_kernels": False, "attention_backend": "torch"}
    return LLM(
        str(model_folder("llama-1b", setting.out, quick=setting.quick)),
        load_format="dummy",
        device=setting.device.type,
        **sizes,
        **options,
    )


def _prompts(count: int, length: int, seed: int) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return random.integers(300, 500, (count, length)).tolist()


def _measure(llm: LLM, prompts: Any, params: Any, findings: Findings, **what: Any) -> None:
    before = llm.stats()
    began = time.perf_counter()
    outputs = llm.generate(prompts, params, progress=False)
    seconds = time.perf_counter() - began
    num_tokens = sum(len(sample.token_ids) for output in outputs for sample in output.outputs)
    after = _stats_at_rest(llm)
    busy, idle, waited, recompiles = (
        sum(getattr(stats, name) for stats in after) - sum(getattr(stats, name) for stats in before)
        for name in (
            "device_busy_seconds",
            "device_idle_seconds",
            "worker_wait_seconds",
            "num_recompiles",
        )
    )
    findings.add(
        **what,
        num_output_tokens=num_tokens,
        seconds=seconds,
        tokens_per_second=num_tokens / seconds,
        device_idle_share=idle / (busy + idle) if busy else 0.0,
        worker_wait_share=min(1.0, waited / seconds),
        num_recompiles=recompiles,
    )


def _stats_at_rest(llm: LLM) -> list[Any]:
    deadline = time.monotonic() + _SETTLE_SECONDS
    while time.monotonic() < deadline:
        stats = llm.stats()
        if stats and not any(one.num_running or one.num_queued for one in stats):
            return stats
        time.sleep(0.05)
    return llm.stats()
