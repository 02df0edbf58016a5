"""Requests for vectors: prefill only, no blocks for output, and never a vector of half a prompt."""

import msgspec
import numpy as np
import pytest

from tests.unit.manager.harness import Harness, make_embedding, make_request
from tokasaurus.errors import ProtocolError
from tokasaurus.ipc.messages.to_manager import StepOutput
from tokasaurus.manager.onboarding import ReserveAllTokens, ReserveKnownTokens


def prompts(num_prompts: int, longest: int = 40) -> list[list[int]]:
    rng = np.random.default_rng(num_prompts)
    return [rng.integers(0, 50, rng.integers(1, longest)).tolist() for _ in range(num_prompts)]


@pytest.mark.parametrize("steps_ahead", [0, 1, 3])
@pytest.mark.parametrize("mixed_batches", [True, False])
def test_vectors_beside_generations(steps_ahead: int, mixed_batches: bool) -> None:
    harness = Harness(
        mixed_batches=mixed_batches,
        scheduling_steps_ahead=steps_ahead,
        max_tokens_per_forward=13,
        max_seqs_per_forward=8,
        debug_preempt_every_steps=4,
    )
    harness.submit(
        *(
            make_request(i, prompt, 1 + i % 9)
            if i % 3 == 0
            else make_embedding(i, prompt, ("mean", "last")[i % 2])
            for i, prompt in enumerate(prompts(40))
        )
    )
    harness.run()
    harness.check_tokens()
    harness.check_empty()
    assert len(harness.vectors) == 26
    assert harness.engine.update_counters().num_output_tokens == sum(
        map(len, harness.tokens.values())
    )


def test_last_reads_the_cache_and_mean_computes_everything() -> None:
    harness = Harness(num_blocks=100, page_size=4)
    prompt = list(range(30))
    harness.submit(make_request(0, prompt, 1))
    harness.run()
    for request_id, pooling in ((1, "last"), (2, "mean")):
        before = harness.worker.num_prefill_tokens
        harness.submit(make_embedding(request_id, prompt, pooling))
        harness.run()
        computed = harness.worker.num_prefill_tokens - before
        cached = harness.finished[request_id].num_cached_tokens
        assert (computed, cached) == {"last": (2, 28), "mean": (30, 0)}[pooling]
    harness.check_tokens()


@pytest.mark.parametrize("policy", [ReserveAllTokens(), None])
def test_no_blocks_for_output(policy: ReserveAllTokens | None) -> None:
    """Two prompts of eight blocks fill sixteen; a token more of each would need two more."""
    harness = Harness(num_blocks=16, page_size=4, policy=policy, max_tokens_per_forward=200)
    harness.submit(*(make_embedding(i, [i] * 32, "mean") for i in range(2)))
    harness.tick()
    assert harness.engine.gauges().num_running == 2
    harness.run()
    harness.check_tokens()


def test_a_prompt_as_long_as_the_context_fits() -> None:
    harness = Harness(num_blocks=8, page_size=4, max_model_len=32)
    harness.submit(make_embedding(0, [1] * 32, "mean"), make_embedding(1, [1] * 33, "mean"))
    harness.run()
    assert harness.finished[0].reason == "stop"
    assert harness.finished[1].reason == "error"
    assert "33 prompt tokens" in (harness.finished[1].error or "")


def test_preempted_between_chunks() -> None:
    """Decodes that need blocks take those of the newest, which starts again from its beginning."""
    harness = Harness(
        num_blocks=12, page_size=2, policy=ReserveKnownTokens(), max_tokens_per_forward=4
    )
    harness.submit(make_request(0, [1, 2], 20), make_request(1, [3, 4], 20, seed=3))
    harness.tick()
    harness.submit(make_embedding(2, [5] * 16, "mean"))
    harness.run()
    harness.check_tokens()
    harness.check_empty()
    assert harness.finished[2].num_preemptions > 0
    assert harness.finished[2].reason == "stop"


@pytest.mark.parametrize("num_ticks", [0, 1, 2, 3, 4, 5])
def test_cancelled_at_any_time(num_ticks: int) -> None:
    harness = Harness(max_tokens_per_forward=5, scheduling_steps_ahead=2)
    harness.submit(make_embedding(0, list(range(16)), "mean"), make_request(1, [1, 2], 4))
    for _ in range(num_ticks):
        harness.tick(0)
    harness.cancel(0)
    harness.run()
    assert harness.finished[0].reason == "cancelled"
    assert not harness.vectors
    harness.check_tokens()
    harness.check_empty()


def test_a_vector_that_is_not_finite_is_an_error() -> None:
    harness = Harness(broken_seeds=frozenset({7}))
    harness.submit(make_embedding(0, [1, 2], "last", seed=7), make_embedding(1, [1, 2], "last"))
    harness.run()
    assert harness.finished[0].reason == "error"
    assert "not a number" in (harness.finished[0].error or "")
    assert harness.finished[1].reason == "stop"
    harness.check_tokens()


def test_a_worker_without_vectors_refuses() -> None:
    harness = Harness()
    harness.engine._worker = msgspec.structs.replace(harness.engine._worker, hidden_size=0)
    harness.submit(make_embedding(0, [1, 2], "last"))
    harness.run()
    assert harness.finished[0].reason == "error"


def test_a_missing_vector_is_a_protocol_error() -> None:
    harness = Harness()
    harness.engine.submit(make_embedding(0, [1, 2], "last"))
    step = harness.engine.schedule()
    assert step is not None
    with pytest.raises(ProtocolError, match="vectors"):
        harness.engine.apply(StepOutput(step_id=step.step_id, token_ids=np.empty(0, np.int32)))
