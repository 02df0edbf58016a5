"""Penalties and bans depend on (request, tokens so far) alone: preemption, prefix sharing, steps
ahead and company change no token; repetition penalty gives transformers' tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.checkpoints import VOCAB_SIZE
from tests.numerics.whole_engine import WholeEngine
from tests.reference import mixed_prompts
from tokasaurus.ipc.messages.to_manager import TokenSampling

Checkpoint = Callable[..., Path]
MAX_TOKENS = 24


def mixed_samplings(plain_every: int = 4) -> list[TokenSampling]:
    """One in `plain_every` asks for nothing."""
    samplings = []
    for i in range(64):
        base: dict[str, Any] = {"temperature": (0.0, 1.0)[i % 2], "seed": 1000 + i}
        adjusting: dict[str, Any] = {
            "frequency_penalty": (0.0, 2.0, -1.0)[i % 3],
            "presence_penalty": (0.0, 1.5)[i % 5 == 0],
            "repetition_penalty": (1.0, 1.6)[i % 7 < 3],
            "bias_ids": (5, 6),
            "bias_values": (4.0, float(i % 3)),
            "bad_words": tuple((a, b) for a in range(3, 40) for b in (5, 6, i)),
        }
        samplings.append(TokenSampling(**base, **(adjusting if i % plain_every else {})))
    return samplings


def test_preemption_and_company_change_nothing(checkpoint: Checkpoint) -> None:
    folder = checkpoint("llama")
    prompts = mixed_prompts(64, VOCAB_SIZE)
    samplings = mixed_samplings()
    calm = WholeEngine(folder, preempt_every_steps=0)
    together, _, _ = calm.generate(prompts, samplings, MAX_TOKENS)
    preempted, _, ends = WholeEngine(folder, preempt_every_steps=3).generate(
        prompts, samplings, MAX_TOKENS
    )
    assert preempted == together
    assert sum(end.num_preemptions for end in ends) > 10
    assert sum(end.num_cached_tokens for end in ends) > 300
    alone = [calm.generate([prompts[i]], [samplings[i]], MAX_TOKENS)[0][0] for i in range(1, 64, 9)]
    assert alone == together[1::9]
    plain = [TokenSampling(temperature=s.temperature, seed=s.seed) for s in samplings]
    untouched, _, _ = calm.generate(prompts, plain, MAX_TOKENS)
    assert untouched[::4] == together[::4], "the company of others changed a plain request"
    assert sum(a != b for a, b in zip(untouched, together, strict=True)) > 40


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_repetition_penalty_as_in_transformers(checkpoint: Checkpoint, penalty: float) -> None:
    folder = checkpoint("llama")
    prompts = mixed_prompts(16, VOCAB_SIZE)
    sampling = TokenSampling(temperature=0.0, repetition_penalty=penalty)
    tokens, _, _ = WholeEngine(folder).generate(prompts, [sampling] * 16, MAX_TOKENS)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for prompt, output in zip(prompts, tokens, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            repetition_penalty=penalty,
            min_new_tokens=MAX_TOKENS,
            max_new_tokens=MAX_TOKENS,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert output == expected[0, len(prompt) :].tolist()
