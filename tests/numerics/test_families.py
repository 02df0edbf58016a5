"""Every native family against transformers: logits of a prompt, then 64 concurrent requests."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.checkpoints import NATIVE, VOCAB_SIZE
from tests.numerics.batch_driver import generate
from tests.reference import greedy_reference, mixed_prompts
from tokasaurus.model.attention.backend import CausalModel
from tokasaurus.model.registry import load_model

Checkpoint = Callable[..., Path]


def load(folder: Path, model_path: str = "native", max_model_len: int | None = None) -> CausalModel:
    return load_model(
        folder,
        dtype="float32",
        device=torch.device("cpu"),
        model_path=model_path,
        load_format="auto",
        max_model_len=max_model_len,
        progress=lambda fraction, text: None,
    )


@pytest.mark.parametrize("family", NATIVE)
def test_concurrent_greedy_tokens_equal_generate(family: str, checkpoint: Checkpoint) -> None:
    folder = checkpoint(family)
    prompts = mixed_prompts(64, VOCAB_SIZE)
    tokens, logprobs = generate(load(folder), prompts, max_new_tokens=8)
    expected_tokens, expected_logprobs = greedy_reference(folder, prompts, max_new_tokens=8)
    assert tokens == expected_tokens
    assert len({token for row in tokens for token in row}) > 10, "the checkpoint is degenerate"
    np.testing.assert_allclose(logprobs, expected_logprobs, atol=1e-4)
