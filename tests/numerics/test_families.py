"""Every native family against transformers: logits of a prompt, then 64 concurrent requests."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.checkpoints import NATIVE, VOCAB_SIZE
from tests.models import load
from tests.numerics.batch_driver import generate, prompt_logits
from tests.reference import greedy_reference, load_reference, mixed_prompts, mixed_reference

Checkpoint = Callable[..., Path]


@pytest.mark.parametrize("family", NATIVE)
def test_concurrent_greedy_tokens_equal_generate(family: str, checkpoint: Checkpoint) -> None:
    folder = checkpoint(family)
    prompts = mixed_prompts(64, VOCAB_SIZE)
    tokens, logprobs = generate(load(folder), prompts, max_new_tokens=8)
    expected_tokens, expected_logprobs = mixed_reference(folder, 64, 8)
    assert tokens == expected_tokens
    assert len({token for row in tokens for token in row}) > 10, "the checkpoint is degenerate"
    np.testing.assert_allclose(logprobs, expected_logprobs, atol=1e-4)


def test_longrope_beyond_the_original_length(checkpoint: Checkpoint) -> None:
    folder = checkpoint("phi3_longrope")
    prompts = [prompt + prompt[:1] * 130 for prompt in mixed_prompts(8, VOCAB_SIZE)]
    model = load(folder, max_model_len=512)
    tokens, logprobs = generate(model, prompts, max_new_tokens=4)
    expected_tokens, expected_logprobs = greedy_reference(folder, prompts, max_new_tokens=4)
    assert tokens == expected_tokens
    np.testing.assert_allclose(logprobs, expected_logprobs, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "falcon_40b", "mixtral", "qwen2_moe"])
def test_bfloat16_logits_are_as_close_as_transformers(family: str, checkpoint: Checkpoint) -> None:
    folder = checkpoint(family)
    ids = torch.tensor(mixed_prompts(12, VOCAB_SIZE)[-1])
    exact = load_reference(folder)(ids[None]).logits[0]
    theirs = load_reference(folder).bfloat16()(ids[None]).logits[0].float()
    ours = prompt_logits(load(folder, dtype="bfloat16"), ids)
    their_error, our_error = ((x - exact).square().mean().sqrt() for x in (theirs, ours))
    assert our_error < 1.5 * their_error
