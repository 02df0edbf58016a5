"""Every family end to end on the device: greedy tokens against transformers in float32."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.checkpoints import NATIVE, VOCAB_SIZE
from tests.models import load
from tests.numerics.batch_driver import generate
from tests.reference import mixed_prompts, mixed_reference

NUM_PROMPTS, NUM_TOKENS = 24, 6


@pytest.mark.parametrize("family", NATIVE)
def test_greedy_tokens_equal_generate(
    family: str, checkpoint: Callable[..., Path], device: torch.device
) -> None:
    folder = checkpoint(family)
    prompts = mixed_prompts(NUM_PROMPTS, VOCAB_SIZE)
    tokens, logprobs = generate(load(folder, device=device), prompts, NUM_TOKENS, device=device)
    expected_tokens, expected_logprobs = mixed_reference(folder, NUM_PROMPTS, NUM_TOKENS)
    assert tokens == expected_tokens
    np.testing.assert_allclose(logprobs, expected_logprobs, atol=1e-3)


def test_quick_one_family(checkpoint: Callable[..., Path], device: torch.device) -> None:
    test_greedy_tokens_equal_generate("llama", checkpoint, device)
