"""Tokens don't depend on how many workers share a model: tensor and pipeline parallel, over gloo.

The ranks are threads here; tests/integration/test_parallel.py has real processes.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from tests.checkpoints import EOS_ID, VOCAB_SIZE
from tests.numerics.whole_engine import GREEDY, PAGE_SIZE, WholeEngine
from tests.reference import mixed_prompts, mixed_reference
from tests.unit.worker.step_driver import DrivenSequence, StepDriver
from tokasaurus.config.compile_options import CompileOptions
from tokasaurus.ipc.messages.to_manager import TokenSampling
from tokasaurus.worker.forward_pass import ForwardOptions

Checkpoint = Callable[..., Path]

MAX_TOKENS = 10


@pytest.mark.parametrize(
    ("family", "pp_size", "tp_size", "attention_backend"),
    [
        ("llama", 1, 2, "cpu"),
        ("llama", 1, 4, "torch"),  # 2 KV heads
        ("llama", 3, 1, "cpu"),
        ("llama_biases", 2, 2, "torch"),
        ("llama_tied", 2, 2, "cpu"),
        ("mistral", 2, 1, "torch"),
        # Slow: four ranks each, for rules that two ranks show one by one.
        pytest.param("mistral", 2, 2, "torch", marks=pytest.mark.slow),
        pytest.param("phi3", 2, 2, "torch", marks=pytest.mark.slow),
        ("qwen2", 1, 2, "cpu"),
        ("qwen3", 1, 2, "torch"),
        ("phi3", 1, 2, "torch"),
        ("falcon_7b", 1, 2, "torch"),  # 1 KV head
        ("falcon_40b", 2, 2, "cpu"),
        ("falcon_sequential", 1, 2, "torch"),
        ("mixtral", 1, 4, "torch"),  # an expert each
        ("qwen2_moe_mixed", 2, 2, "cpu"),
        ("qwen3_moe", 1, 2, "cpu"),  # 5 experts
    ],
)
def test_tokens_equal_generate(
    family: str, pp_size: int, tp_size: int, attention_backend: str, checkpoint: Checkpoint
) -> None:
    folder = checkpoint(family)
    prompts = mixed_prompts(32, VOCAB_SIZE)
    engine = WholeEngine(
        folder, attention_backend=attention_backend, pp_size=pp_size, tp_size=tp_size
    )
    tokens, logprobs, ends = engine.generate(prompts, [GREEDY] * 32, MAX_TOKENS)
    expected_tokens, expected_logprobs = mixed_reference(folder, len(prompts), MAX_TOKENS)
    assert tokens == expected_tokens
    np.testing.assert_allclose(logprobs, expected_logprobs, atol=1e-4)
    assert {end.reason for end in ends} == {"length"}
    assert sum(end.num_preemptions for end in ends) > 2, "nothing was preempted"
    assert sum(end.num_cached_tokens for end in ends) > 100, "no prefix was shared"
    engine.runner.close()


@pytest.mark.parametrize(
    ("family", "pp_size", "tp_size"),
    [
        ("llama_biases", 1, 2),
        ("llama_tied", 2, 2),
        ("falcon_7b", 1, 4),  # layers side by side, one KV head
        ("qwen2_moe_mixed", 2, 2),
    ],
)
def test_tokens_divided_between_ranks_change_nothing(
    family: str, pp_size: int, tp_size: int, checkpoint: Checkpoint
) -> None:
    """Steps with an odd number of tokens, too; smaller steps are as they were."""
    folder = checkpoint(family)
    prompts = mixed_prompts(24, VOCAB_SIZE)
    engine = WholeEngine(folder, pp_size=pp_size, tp_size=tp_size, division_threshold=20)
    tokens, logprobs, _ = engine.generate(prompts, [GREEDY] * 24, MAX_TOKENS)
    expected_tokens, expected_logprobs = mixed_reference(folder, len(prompts), MAX_TOKENS)
    assert tokens == expected_tokens
    np.testing.assert_allclose(logprobs, expected_logprobs, atol=1e-4)
    engine.runner.close()


@pytest.mark.parametrize(
    ("family", "pp_size", "tp_size", "backend"),
    [
        ("llama", 1, 2, "eager"),
        # Slow: lowers eight graphs, half a minute on a busy machine.
        pytest.param("qwen2_moe_mixed", 2, 2, "aot_eager", marks=pytest.mark.slow),
    ],
)
def test_compiled_ranks_compile_nothing_after_warm_up(
    family: str, pp_size: int, tp_size: int, backend: str, checkpoint: Checkpoint
) -> None:
    """Inductor, which generates code from the same graphs, has tests with one rank."""
    torch.compiler.reset()  # the ranks of all tests share a process, and its limit of graphs
    folder = checkpoint(family)
    prompts = mixed_prompts(16, VOCAB_SIZE)
    options = ForwardOptions(compile_options=CompileOptions(backend=backend))
    engine = WholeEngine(folder, pp_size=pp_size, tp_size=tp_size, forward=options)
    assert "compiled" in engine.runner.description
    num_compilations = counters["stats"]["unique_graphs"]
    tokens, _, _ = engine.generate(prompts, [GREEDY] * 16, MAX_TOKENS)
    assert counters["stats"]["unique_graphs"] == num_compilations > 0
    assert tokens == mixed_reference(folder, len(prompts), MAX_TOKENS)[0]
    engine.runner.close()


@pytest.mark.parametrize(("pp_size", "tp_size"), [(1, 2), (2, 2)])
def test_drawn_tokens_are_those_of_one_worker(
    pp_size: int, tp_size: int, checkpoint: Checkpoint
) -> None:
    """Whether a row is decided shard by shard or gathered."""
    folder = checkpoint("llama")
    prompts = mixed_prompts(24, VOCAB_SIZE)
    samplings = [
        TokenSampling(
            temperature=(0.7, 1.0, 0.0)[i % 3],
            top_k=(0, 20)[i % 2],
            top_p=(1.0, 0.9)[i % 5 == 0],
            min_p=(0.0, 0.02)[i % 7 == 0],
            seed=1000 + i,
            presence_penalty=(0.0, 0.8)[i % 6 == 0],
            bias_ids=((), (7, 300))[i % 8 == 0],
            bias_values=((), (3.0, 5.0))[i % 8 == 0],
            min_tokens=(0, 4)[i % 4 == 0],
            banned_until_min_tokens=((), (5, 6, 320))[i % 4 == 0],
            grammar="start: /[a-z]{3,9}(, [a-z]{3,9})*/" if i % 5 == 1 else "",
            end_token_ids=(EOS_ID,) if i % 5 == 1 else (),
        )
        for i in range(24)
    ]
    alone = WholeEngine(folder).generate(prompts, samplings, MAX_TOKENS)
    engine = WholeEngine(folder, pp_size=pp_size, tp_size=tp_size)
    spread = engine.generate(prompts, samplings, MAX_TOKENS)
    assert spread[0] == alone[0]
    for one, other in zip(spread[1], alone[1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    engine.runner.close()


@pytest.mark.parametrize(("pp_size", "tp_size"), [(2, 1), (2, 2)])
def test_scores_and_vectors_of_prompts_that_are_cut(
    pp_size: int, tp_size: int, checkpoint: Checkpoint
) -> None:
    folder = checkpoint("llama")
    prompts = mixed_prompts(12, VOCAB_SIZE)
    scored = TokenSampling(temperature=0.0, num_prompt_logprobs=2)
    alone, spread = WholeEngine(folder), WholeEngine(folder, pp_size=pp_size, tp_size=tp_size)

    def score(engine: WholeEngine) -> dict[int, tuple[float, list[int]]]:
        driver = StepDriver(engine.runner, PAGE_SIZE)
        sequence = driver.add(0, prompts[11], scored)
        other = driver.add(1, prompts[2], GREEDY)
        driver.run(prefill=[(other, len(prompts[2])), (sequence, 70)])
        driver.run(prefill=[(sequence, len(prompts[11]) - 70)], decode=[other])
        scores = by_position(sequence)
        driver.free(sequence)
        driver.free(other)
        driver.run()
        return scores

    expected, actual = score(alone), score(spread)
    assert sorted(actual) == sorted(expected) == list(range(1, len(prompts[11])))
    for position, (logprob, top_ids) in actual.items():
        assert logprob == pytest.approx(expected[position][0], abs=1e-4)
        assert top_ids == expected[position][1]
    for pooling in ("mean", "last"):
        vectors, _ = spread.embed(prompts, pooling, num_generations=6)
        np.testing.assert_allclose(
            vectors, alone.embed(prompts, pooling, num_generations=6)[0], atol=1e-4
        )
    spread.runner.close()


def by_position(sequence: DrivenSequence) -> dict[int, tuple[float, list[int]]]:
    return {
        scores.start + 1 + index: (float(logprob), scores.top_ids[index].tolist())
        for scores in sequence.prompt_logprobs
        for index, logprob in enumerate(scores.logprobs)
    }
