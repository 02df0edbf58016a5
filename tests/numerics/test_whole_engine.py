"""Manager and runner together: preemption, shared prefixes and steps ahead change no token."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import VOCAB_SIZE
from tests.numerics.whole_engine import GREEDY, WholeEngine
from tests.reference import greedy_reference, mixed_prompts, mixed_reference
from tokasaurus.ipc.messages.to_manager import TokenSampling
from tokasaurus.model.registry import ModelPath

Checkpoint = Callable[..., Path]

MAX_TOKENS = 12
NATIVE = [
    "llama",
    "llama3",
    "mistral",
    "qwen2",
    "qwen3",
    "phi3",
    "falcon_7b",
    "falcon_40b",
    "mixtral",
    "qwen2_moe_mixed",
    "qwen3_moe",
]
TRANSFORMERS = ["gpt2", "gpt_neox", "opt", "phi", "gemma2", "mixtral"]


@pytest.mark.parametrize(
    ("family", "path", "attention_backend"),
    [
        *((family, "native", "torch") for family in NATIVE),
        *((family, "native", "cpu") for family in NATIVE),
        *((family, "transformers", "torch") for family in TRANSFORMERS),
        *((family, "transformers", "cpu") for family in TRANSFORMERS),
        ("llama_tied", "transformers", "cpu"),
        ("llama_gelu", "native", "cpu"),
    ],
)
def test_tokens_equal_generate(
    family: str, path: ModelPath, attention_backend: str, checkpoint: Checkpoint
) -> None:
    folder = checkpoint(family)
    prompts = mixed_prompts(64, VOCAB_SIZE)
    engine = WholeEngine(folder, model_path=path, attention_backend=attention_backend)
    tokens, logprobs, ends = engine.generate(prompts, [GREEDY] * 64, MAX_TOKENS)
    expected_tokens, expected_logprobs = mixed_reference(folder, 64, MAX_TOKENS)
    assert tokens == expected_tokens
    np.testing.assert_allclose(logprobs, expected_logprobs, atol=1e-4)
    assert {end.reason for end in ends} == {"length"}
    assert sum(end.num_preemptions for end in ends) > 5, "nothing was preempted"
    assert sum(end.num_cached_tokens for end in ends) > 300, "no prefix was shared"


@pytest.mark.parametrize("attention_backend", ["torch", "cpu"])
def test_same_seed_same_tokens_alone_in_a_batch_and_after_preemption(
    attention_backend: str, checkpoint: Checkpoint
) -> None:
    folder = checkpoint("llama")
    prompts = mixed_prompts(64, VOCAB_SIZE)
    samplings = [
        TokenSampling(
            temperature=(0.7, 1.0, 1.5)[i % 3],
            top_k=(0, 20)[i % 2],
            top_p=(1.0, 0.9)[i % 5 == 0],
            min_p=(0.0, 0.02)[i % 7 == 0],
            seed=1000 + i,
        )
        for i in range(64)
    ]
    calm = WholeEngine(folder, preempt_every_steps=0, attention_backend=attention_backend)
    together, _, _ = calm.generate(prompts, samplings, MAX_TOKENS)
    disturbed = WholeEngine(folder, attention_backend=attention_backend)
    preempted, _, ends = disturbed.generate(prompts, samplings, MAX_TOKENS)
    assert preempted == together
    assert sum(end.num_preemptions for end in ends) > 5
    alone = [calm.generate([prompts[i]], [samplings[i]], MAX_TOKENS)[0][0] for i in range(0, 64, 9)]
    assert alone == together[::9]


def test_a_common_prefix_is_computed_once(checkpoint: Checkpoint) -> None:
    prefix = mixed_prompts(12, VOCAB_SIZE)[-1] * 3
    prompts = [[*prefix, 7 + i, 12] for i in range(40)]
    engine = WholeEngine(checkpoint("llama"), preempt_every_steps=0)
    tokens, _, ends = engine.generate(prompts, [GREEDY] * 40, 4)
    cached = sum(end.num_cached_tokens for end in ends)
    assert cached == 39 * (len(prefix) // 8 * 8)
    expected, _ = greedy_reference(checkpoint("llama"), prompts, 4)
    assert tokens == expected
