"""Vectors of prompts equal those that transformers' last hidden states give."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.checkpoints import VOCAB_SIZE
from tests.numerics.threaded_replica import ThreadedReplica
from tests.numerics.whole_engine import WholeEngine
from tests.reference import load_reference, mixed_prompts
from tokasaurus.ipc.messages.to_manager import Pooling
from tokasaurus.manager.onboarding import ReserveKnownTokens
from tokasaurus.model.registry import ModelPath

Checkpoint = Callable[..., Path]
POOLINGS: list[Pooling] = ["mean", "last"]


def reference_vectors(folder: Path, prompts: list[list[int]], pooling: Pooling) -> np.ndarray:
    model = load_reference(folder).base_model
    rows = []
    with torch.inference_mode():
        for prompt in prompts:
            hidden = model(torch.tensor([prompt])).last_hidden_state[0]
            rows.append(hidden.mean(0) if pooling == "mean" else hidden[-1])
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    ("family", "path", "attention_backend"),
    [
        ("llama", "native", "torch"),
        ("qwen3", "native", "cpu"),
        ("phi3", "native", "cpu"),
        ("gpt2", "transformers", "torch"),
    ],
)
def test_alone_in_chunks_and_beside_generations(
    family: str,
    path: ModelPath,
    attention_backend: str,
    pooling: Pooling,
    checkpoint: Checkpoint,
) -> None:
    """Steps take 100 tokens, so most prompts are cut; half of them share prefixes."""
    folder = checkpoint(family)
    prompts = mixed_prompts(48, VOCAB_SIZE)
    engine = WholeEngine(folder, model_path=path, attention_backend=attention_backend)
    expected = reference_vectors(folder, prompts, pooling)
    for num_generations in (0, 24):
        vectors, ends = engine.embed(prompts, pooling, num_generations=num_generations)
        np.testing.assert_allclose(vectors, expected, atol=1e-4)
        assert {end.reason for end in ends} == {"stop"}
        num_cached = sum(end.num_cached_tokens for end in ends)
        assert num_cached == 0 if pooling == "mean" else num_cached > 200


@pytest.mark.parametrize("pooling", POOLINGS)
def test_preempted_between_chunks(pooling: Pooling, checkpoint: Checkpoint) -> None:
    """The cache holds a few prompts only, and decodes take the blocks of prompts under way."""
    folder = checkpoint("llama")
    prompts = [prompt * 3 for prompt in mixed_prompts(18, VOCAB_SIZE)]
    engine = WholeEngine(
        folder, num_kv_tokens=400, preempt_every_steps=0, policy=ReserveKnownTokens()
    )
    vectors, ends = engine.embed(prompts, pooling, num_generations=18, max_tokens=40)
    np.testing.assert_allclose(vectors, reference_vectors(folder, prompts, pooling), atol=1e-4)
    assert sum(end.num_preemptions for end in ends) > 0, "no prompt was preempted"


@pytest.mark.parametrize("pooling", POOLINGS)
def test_several_workers(pooling: Pooling, checkpoint: Checkpoint) -> None:
    """The last stage pools, also where a step is cut into micro-batches."""
    folder = checkpoint("llama")
    prompts = mixed_prompts(32, VOCAB_SIZE)
    engine = WholeEngine(folder, pp_size=2, tp_size=2)
    vectors, ends = engine.embed(prompts, pooling, num_generations=16)
    assert isinstance(engine.runner, ThreadedReplica)
    engine.runner.close()
    np.testing.assert_allclose(vectors, reference_vectors(folder, prompts, pooling), atol=1e-4)
    assert {end.reason for end in ends} == {"stop"}
