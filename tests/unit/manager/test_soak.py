"""Thousands of random requests: whatever happens, tokens are right and nothing is left behind."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.unit.manager.harness import Harness, make_embedding, make_request
from tokasaurus.manager.onboarding import AdmissionPolicy, ReserveAllTokens, ReserveKnownTokens

POLICIES: dict[str, Callable[[], AdmissionPolicy | None]] = {
    "reserve": ReserveAllTokens,
    "overcommit": ReserveKnownTokens,
    "simulate": lambda: None,
}
"""None is the engine's own."""


def _soak(harness: Harness, rng: np.random.Generator, num_requests: int) -> None:
    """Submit in bursts, cancel at random, hold worker outputs back and end leases at random, which
    are short while passes take long."""
    harness.passes_of_lease = lambda step: int(rng.integers(1, step.max_passes + 1))
    harness.seconds_of_pass = lambda: float(rng.choice([0.0, 0.004, 0.02, 0.2]))
    prefixes = [rng.integers(0, 50, rng.integers(1, 30)).tolist() for _ in range(5)]
    submitted = 0
    while submitted < num_requests or len(harness.finished) < len(harness.requests):
        if submitted < num_requests and rng.random() < 0.5:
            burst = min(int(rng.integers(1, 12)), num_requests - submitted)
            for _ in range(burst):
                harness.submit(_random_request(rng, prefixes, submitted))
                submitted += 1
        if rng.random() < 0.3 and submitted:
            harness.cancel(
                *(rng.integers(0, submitted, 2) | (rng.integers(0, 2, 2) << 48)).tolist()
            )
        harness.tick(int(rng.integers(0, 4)))
    for _ in range(10):
        harness.tick(10)


def _random_request(rng: np.random.Generator, prefixes: list[list[int]], index: int):
    prompt = [*prefixes[rng.integers(5)], *rng.integers(0, 50, rng.integers(0, 9)).tolist()]
    if rng.random() < 0.2:
        return make_embedding(
            index,
            prompt,
            "mean" if rng.random() < 0.5 else "last",
            server=int(rng.integers(0, 2)),
            seed=int(rng.integers(0, 6)),
            priority=int(rng.integers(0, 2)),
            salt="ab"[rng.integers(2)],
        )
    return make_request(
        index,
        prompt,
        int(rng.integers(1, 40)),
        server=int(rng.integers(0, 2)),
        seed=int(rng.integers(0, 6)),
        stop=tuple(rng.integers(0, 60, rng.integers(0, 3)).tolist()),
        priority=int(rng.integers(0, 2)),
        salt="ab"[rng.integers(2)],
        num_top_logprobs=max(-1, int(rng.integers(-6, 2))),
        num_prompt_logprobs=int(rng.integers(-3, 2)),
        wants_every_token=bool(rng.random() < 0.1),
    )


@pytest.mark.parametrize(
    ("seed", "steps_ahead", "interval", "mixed_batches", "policy", "repeats"),
    [
        (0, 1, 0, True, "reserve", True),
        (1, 0, 3, True, "reserve", False),
        (2, 2, 4, True, "overcommit", True),
        (3, 1, 0, True, "simulate", True),
        (4, 3, 2, False, "simulate", False),
        (5, 1, 7, False, "simulate", True),
    ],
)
def test_soak(
    seed: int, steps_ahead: int, interval: int, mixed_batches: bool, policy: str, repeats: bool
) -> None:
    harness = Harness(
        num_blocks=40,
        page_size=3,
        num_servers=2,
        policy=POLICIES[policy](),
        mixed_batches=mixed_batches,
        repeats=repeats,
        broken_seeds=frozenset({5}),
        scheduling_steps_ahead=steps_ahead,
        max_tokens_per_forward=24,
        max_seqs_per_forward=10,
        debug_preempt_every_steps=interval,
        hydragen_min_group_size=2,
        hydragen_min_prefix_len=3,
    )
    _soak(harness, np.random.default_rng(seed), 250)
    harness.check_tokens()
    harness.check_empty()
    reasons = {finished.reason for finished in harness.finished.values()}
    assert reasons == {"stop", "length", "cancelled", "error"}


@settings(max_examples=examples(10, searching=40))
@given(
    seed=st.integers(0, 2**32),
    page_size=st.integers(1, 9),
    num_blocks=st.integers(30, 80),
    steps_ahead=st.integers(0, 4),
    interval=st.integers(0, 5),
    num_slots=st.integers(1, 12),
    budget=st.integers(1, 60),
    mixed_batches=st.booleans(),
    policy=st.sampled_from(sorted(POLICIES)),
    repeats=st.booleans(),
)
def test_any_settings(
    seed: int,
    page_size: int,
    num_blocks: int,
    steps_ahead: int,
    interval: int,
    num_slots: int,
    budget: int,
    mixed_batches: bool,
    policy: str,
    repeats: bool,
) -> None:
    harness = Harness(
        num_blocks=num_blocks,
        page_size=page_size,
        num_servers=2,
        policy=POLICIES[policy](),
        mixed_batches=mixed_batches,
        repeats=repeats,
        scheduling_steps_ahead=steps_ahead,
        max_tokens_per_forward=budget,
        max_seqs_per_forward=num_slots,
        debug_preempt_every_steps=interval,
        hydragen_min_group_size=2,
        hydragen_min_prefix_len=3,
    )
    _soak(harness, np.random.default_rng(seed), 25)
    harness.check_tokens()
    harness.check_empty()
    assert harness.worker.max_step_tokens <= budget
