"""Architectures without a native spec against transformers, under 64 concurrent requests."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import REFUSED, TRANSFORMERS, VOCAB_SIZE
from tests.models import load
from tests.numerics.batch_driver import generate
from tests.reference import mixed_prompts, mixed_reference
from tokasaurus.errors import ModelError

Checkpoint = Callable[..., Path]


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_concurrent_greedy_tokens_equal_generate(family: str, checkpoint: Checkpoint) -> None:
    folder = checkpoint(family)
    model = load(folder, "auto")
    assert model.path.startswith("transformers ")
    prompts = mixed_prompts(64, VOCAB_SIZE)
    tokens, logprobs = generate(model, prompts, max_new_tokens=6)
    expected_tokens, expected_logprobs = mixed_reference(folder, 64, 6)
    assert tokens == expected_tokens
    assert len({token for row in tokens for token in row}) > 10, "the checkpoint is degenerate"
    np.testing.assert_allclose(logprobs, expected_logprobs, atol=1e-4)


@pytest.mark.parametrize("family", REFUSED)
def test_refused_with_the_list_of_what_works(family: str, checkpoint: Checkpoint) -> None:
    with pytest.raises(ModelError, match=r"LlamaForCausalLM.*GPT2LMHeadModel"):
        load(checkpoint(family), "auto")


@pytest.mark.parametrize(
    "family", ["llama3", "mistral", "qwen2_window", "phi3_longrope", "qwen2_moe", "qwen3_moe"]
)
def test_a_native_family_can_be_sent_through_transformers(
    family: str, checkpoint: Checkpoint
) -> None:
    folder = checkpoint(family)
    prompts = mixed_prompts(12, VOCAB_SIZE)
    model = load(folder, "transformers")
    assert model.path.startswith("transformers ")
    assert model.max_model_len == load(folder, "native").max_model_len
    assert generate(model, prompts, 4)[0] == generate(load(folder, "native"), prompts, 4)[0]
