"""The manager against a simulated worker: right tokens, right ends, nothing left behind."""

import numpy as np
import pytest

from tests.unit.manager.harness import Harness, expected_outputs, make_request
from tokasaurus.manager.onboarding import ReserveKnownTokens


@pytest.mark.parametrize("steps_ahead", [0, 1, 2, 5])
@pytest.mark.parametrize("mixed_batches", [True, False])
def test_tokens_are_right(steps_ahead: int, mixed_batches: bool) -> None:
    harness = Harness(
        mixed_batches=mixed_batches,
        scheduling_steps_ahead=steps_ahead,
        max_tokens_per_forward=13,
        max_seqs_per_forward=8,
    )
    rng = np.random.default_rng(steps_ahead)
    harness.submit(
        *(
            make_request(i, rng.integers(0, 50, rng.integers(1, 40)).tolist(), 1 + i % 17)
            for i in range(30)
        )
    )
    harness.run()
    harness.check_tokens()
    harness.check_empty()
    assert harness.worker.max_step_tokens <= 13


def test_arrivals_together_compute_a_shared_prefix_once() -> None:
    harness = Harness(num_blocks=400, page_size=16, max_model_len=4096, max_tokens_per_forward=500)
    prefix = np.random.default_rng(0).integers(0, 50, 1024).tolist()
    harness.submit(*(make_request(i, [*prefix, i, i + 1], 4) for i in range(64)))
    harness.run()
    harness.check_tokens()
    assert harness.worker.num_prefill_tokens == 1024 + 64 * 2
    cached = [harness.finished[i].num_cached_tokens for i in range(64)]
    assert cached == [0] + [1024] * 63


def test_equal_prompts_leave_one_token_to_compute() -> None:
    harness = Harness(page_size=4)
    harness.submit(*(make_request(i, list(range(8)), 3) for i in range(3)))
    harness.run()
    harness.check_tokens()
    harness.check_empty()
    assert [harness.finished[i].num_cached_tokens for i in range(3)] == [0, 4, 4]


def test_generated_tokens_are_cached() -> None:
    harness = Harness(page_size=4)
    first = make_request(0, [1, 2, 3], 14, seed=5)
    harness.submit(first)
    harness.run()
    follow_up = [1, 2, 3, *harness.tokens[0], 7]
    harness.submit(make_request(1, follow_up, 2))
    harness.run()
    assert harness.finished[1].num_cached_tokens == 16


def test_salts_share_nothing() -> None:
    harness = Harness(page_size=4)
    for i, salt in enumerate(["a", "b", "a"]):
        harness.submit(make_request(i, list(range(9)), 2, salt=salt))
        harness.run()
    assert [harness.finished[i].num_cached_tokens for i in range(3)] == [0, 0, 8]


def test_a_filler_that_is_cancelled_leaves_its_work_to_the_next() -> None:
    harness = Harness(page_size=4, max_tokens_per_forward=6, scheduling_steps_ahead=0)
    prefix = list(range(24))
    harness.submit(*(make_request(i, [*prefix, i], 3) for i in range(3)))
    harness.tick()
    harness.cancel(0)
    harness.run()
    harness.check_tokens()
    harness.check_empty()
    assert harness.finished[0].reason == "cancelled"
    assert harness.finished[1].num_cached_tokens == 4  # of 6 tokens computed, one full block
    assert harness.finished[2].num_cached_tokens == 24


def test_stop_on_the_last_position_says_stop() -> None:
    request = make_request(0, [1, 2], 6)
    tokens, _ = expected_outputs(request, 50)
    harness = Harness()
    first = tokens.index(tokens[5])
    harness.submit(make_request(0, [1, 2], first + 1, stop=(tokens[first],)))
    harness.run()
    assert harness.finished[0].reason == "stop"
    assert harness.finished[0].stop_token_id == tokens[first]
    assert harness.tokens[0] == tokens[: first + 1]


def test_nan_fails_that_request_alone() -> None:
    harness = Harness(broken_seeds=frozenset({3}))
    harness.submit(*(make_request(i, [1, 2, 3, 4, 5], 20) for i in range(6)))
    harness.run()
    harness.check_tokens()
    harness.check_empty()
    assert [harness.finished[i].reason for i in range(6)] == ["length"] * 3 + ["error"] + [
        "length"
    ] * 2
    assert harness.finished[3].error


def test_cancel_in_every_state() -> None:
    harness = Harness(max_seqs_per_forward=2, max_tokens_per_forward=8, scheduling_steps_ahead=2)
    harness.submit(make_request(0, [1], 50), make_request(1, list(range(30)), 50))
    harness.submit(make_request(2, [2], 50))
    harness.tick(0)
    harness.tick(1)
    harness.cancel(2, 0, 1, 0, 99)
    harness.tick(0)
    assert {r: f.reason for r, f in harness.finished.items()} == dict.fromkeys(
        range(3), "cancelled"
    )
    assert harness.finished[2].queue_seconds is None, "it never left the queue"
    assert harness.finished[0].queue_seconds == 0
    harness.run()
    harness.check_empty()


def test_a_request_that_can_never_fit_is_refused_with_the_numbers() -> None:
    harness = Harness(num_blocks=4, page_size=4)
    harness.submit(make_request(0, [1] * 10, 8), make_request(1, [1] * 10, 7))
    harness.run()
    assert harness.finished[0].reason == "error"
    assert "10 prompt tokens" in (harness.finished[0].error or "")
    assert "16 tokens" in (harness.finished[0].error or "")
    assert harness.finished[1].reason == "length"
    harness.submit(make_request(2, [1] * 999, 8))
    harness.run()
    assert "context of 1000" in (harness.finished[2].error or "")


def test_recovered_requests_go_on_where_they_were() -> None:
    request = make_request(0, [1, 2, 3], 12)
    tokens, _ = expected_outputs(request, 50)
    harness = Harness()
    harness.submit(make_request(0, [1, 2, 3], 12, outputs=tokens[:5]))
    harness.submit(make_request(1, [1, 2, 3], 5, outputs=tokens[:5]))
    harness.submit(make_request(2, [1, 2, 3], 9, outputs=tokens[:5], stop=(tokens[4],)))
    harness.run()
    assert harness.tokens[0] == tokens[5:]
    assert harness.finished[1].reason == "length"
    assert harness.finished[2].reason == "stop"
    harness.check_empty()


@pytest.mark.parametrize("steps_ahead", [0, 1, 3])
def test_preemption_keeps_tokens(steps_ahead: int) -> None:
    harness = Harness(
        num_blocks=14,
        page_size=4,
        policy=ReserveKnownTokens(),
        scheduling_steps_ahead=steps_ahead,
        max_tokens_per_forward=32,
        max_seqs_per_forward=16,
    )
    harness.submit(*(make_request(i, [i, i + 1, i + 2], 30) for i in range(12)))
    harness.run()
    harness.check_tokens()
    harness.check_empty()
    assert sum(f.num_preemptions for f in harness.finished.values()) > 0
    assert harness.engine.update_counters().num_preemptions > 0
    for finished in harness.finished.values():
        assert len(finished.preempted_at) == len(finished.resumed_at) <= finished.num_preemptions
        times = zip(finished.preempted_at, finished.resumed_at, strict=True)
        waits = [time for wait in times for time in wait]
        assert waits == sorted(waits)


@pytest.mark.parametrize("interval", [1, 2, 5])
def test_forced_preemption(interval: int) -> None:
    harness = Harness(debug_preempt_every_steps=interval, max_tokens_per_forward=20)
    harness.submit(
        *(
            make_request(i, [7] * 10 + [i], 20, num_top_logprobs=2, num_prompt_logprobs=1)
            for i in range(8)
        )
    )
    harness.run()
    harness.check_tokens()
    harness.check_empty()
    assert all(finished.num_cached_tokens == 0 for finished in harness.finished.values())
    _check_logprobs(harness)


def _check_logprobs(harness: Harness) -> None:
    for request_id, request in harness.requests.items():
        prompt = [e for e in harness.logprobs[request_id] if e.is_prompt]
        positions = -np.concatenate([entry.logprobs for entry in prompt])
        assert positions.tolist() == list(range(1, request.prompt_ids.size))
        assert all(entry.top_ids.shape == (entry.logprobs.size, 1) for entry in prompt)
        outputs = [e for e in harness.logprobs[request_id] if not e.is_prompt]
        drawn = -np.concatenate([entry.logprobs for entry in outputs])
        assert drawn.tolist() == harness.tokens[request_id]
        assert all(entry.top_ids.shape == (1, 2) for entry in outputs)


def test_priorities_then_arrival() -> None:
    harness = Harness(max_seqs_per_forward=1, scheduling_steps_ahead=0)
    order = [(0, 5), (1, 0), (2, 5), (3, -1), (4, 0)]
    harness.submit(*(make_request(i, [1], 2, priority=p) for i, p in order))
    harness.run()
    assert list(harness.finished) == [3, 1, 4, 0, 2]


def test_outputs_go_to_the_server_that_asked() -> None:
    harness = Harness(num_servers=3, scheduling_steps_ahead=3)
    harness.submit(*(make_request(i, [1, i], 9, server=i % 3) for i in range(9)))
    harness.tick(0)
    for _ in range(4):
        harness.tick(4)
    harness.run()
    harness.check_tokens()
    assert [greeting.num_kv_tokens for greeting in harness.greetings] == [256] * 3


def test_an_idle_manager_says_so_once() -> None:
    harness = Harness()
    harness.submit(make_request(0, [1], 2))
    harness.run()
    for _ in range(5):
        harness.tick()
    assert [stats.num_running for stats in harness.stats] == [1, 0]
    assert harness.stats[-1].num_output_tokens == 2
    assert harness.stats[-1].num_prompt_tokens == 1
