"""Paced prefills join as fast as others leave, always advance, and change no token."""

import numpy as np
import pytest

from tests.unit.manager.harness import Harness, make_request
from tokasaurus.manager.prefill_pacing import PrefillPacer
from tokasaurus.manager.settings import ManagerSettings


def _pacer(**settings: int) -> PrefillPacer:
    return PrefillPacer(ManagerSettings(greedy_prefill=False, page_size=16, **settings))


def test_greedy_takes_what_fits() -> None:
    pacer = PrefillPacer(ManagerSettings(max_tokens_per_forward=1000))
    pacer.observe(100)
    assert not pacer.needs_backlog
    assert pacer.budget(200, 50, 300.0) == 800


def test_takes_what_fits_until_lengths_are_known() -> None:
    assert _pacer(max_tokens_per_forward=1000).budget(200, 50, 300.0) == 800


def test_takes_what_fits_while_nothing_decodes() -> None:
    pacer = _pacer(max_tokens_per_forward=1000)
    pacer.observe(100)
    assert pacer.budget(0, 50, 300.0) == 1000


def test_as_many_join_as_leave() -> None:
    """200 seats and outputs of 100 tokens: two sequences per step."""
    pacer = _pacer(max_tokens_per_forward=10_000)
    for _ in range(10):
        pacer.observe(100)
    assert pacer.budget(150, 50, 300.0) == pytest.approx(600, abs=1)


def test_every_prefill_advances() -> None:
    pacer = _pacer(max_tokens_per_forward=1000)
    pacer.observe(1_000_000)
    assert pacer.budget(1, 1, 10.0) == 16


def test_never_beyond_the_limits() -> None:
    pacer = _pacer(max_tokens_per_forward=1000, max_prefill_tokens_per_step=100)
    pacer.observe(1)
    assert pacer.budget(200, 50, 300.0) == 100


@pytest.mark.parametrize("mixed_batches", [True, False])
def test_nothing_is_lost(mixed_batches: bool) -> None:
    rng = np.random.default_rng(0)
    harness = Harness(
        num_blocks=60,
        greedy_prefill=False,
        mixed_batches=mixed_batches,
        max_tokens_per_forward=60,
        max_seqs_per_forward=20,
    )
    for index in range(120):
        prompt = rng.integers(0, 50, rng.integers(1, 80)).tolist()
        harness.submit(make_request(index, prompt, int(rng.integers(1, 40))))
        if rng.random() < 0.3:
            harness.tick()
    harness.run()
    harness.check_tokens()
    harness.check_empty()
