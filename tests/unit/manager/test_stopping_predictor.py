"""Predictions against the true conditional mean of the lengths that are drawn."""

import numpy as np
import pytest

from tokasaurus.manager.stopping_predictor import StoppingPredictor

_NONE = np.empty(0, np.int64)


_QUANTILES = (np.arange(400) + 0.5) / 400


def _predict(
    predictor: StoppingPredictor, num_tokens: int, max_tokens: int, running: np.ndarray = _NONE
) -> float:
    """Mean over all quantiles."""
    remaining = predictor.remaining(
        1, np.full(400, num_tokens), np.full(400, max_tokens), _QUANTILES, running
    )
    return float(remaining.mean())


def test_knows_nothing_at_first() -> None:
    predictor = StoppingPredictor()
    assert _predict(predictor, 3, 100) == 97
    predictor.observe(2, 0, 10, is_stop=True)
    assert _predict(predictor, 3, 100) == 97


def test_few_ends_change_little() -> None:
    predictor = StoppingPredictor()
    predictor.observe(1, 0, 5, is_stop=True)
    assert _predict(predictor, 0, 1000) > 800


@pytest.mark.parametrize("num_tokens", [0, 50, 300])
def test_conditional_mean(num_tokens: int) -> None:
    rng = np.random.default_rng(0)
    lengths = np.maximum(1, rng.lognormal(5, 0.8, 20_000)).astype(int)
    predictor = StoppingPredictor(buffer=0.0)
    for length in lengths[-2000:]:
        predictor.observe(1, 0, int(length), is_stop=True)
    longer = lengths[lengths > num_tokens]
    truth = np.minimum(longer, 4096).mean() - num_tokens
    assert _predict(predictor, num_tokens, 4096) == pytest.approx(truth, rel=0.15)


def test_other_max_tokens_do_not_spoil_it() -> None:
    """Half of the callers cut their outputs at 64 tokens: the others' mean is still found."""
    rng = np.random.default_rng(1)
    predictor = StoppingPredictor(buffer=0.0)
    lengths = np.maximum(1, rng.exponential(400, 2000)).astype(int)
    for index, length in enumerate(lengths.tolist()):
        limit = 64 if index % 2 else 4096
        predictor.observe(1, 0, min(length, limit), is_stop=length <= limit)
    assert _predict(predictor, 0, 4096) == pytest.approx(400, rel=0.15)
    assert _predict(predictor, 0, 64) == pytest.approx(np.minimum(lengths, 64).mean(), rel=0.1)


def test_those_that_still_run_count() -> None:
    """Only short outputs have ended yet; a thousand that are longer still run."""
    predictor = StoppingPredictor(buffer=0.0)
    for _ in range(50):
        predictor.observe(1, 0, 10, is_stop=True)
    assert _predict(predictor, 0, 500, np.full(1000, 40)) > 400
    assert _predict(predictor, 0, 500) < 150


def test_never_beyond_the_limit_nor_below_one() -> None:
    predictor = StoppingPredictor()
    for length in range(1, 3000):
        predictor.observe(1, 0, length % 7 + 1, is_stop=True)
    num_tokens = np.array([0, 1, 6, 7, 5000, 10])
    max_tokens = np.array([1, 3, 7, 7, 6000, 10])
    quantiles = np.array([0.01, 0.5, 0.99, 0.3, 0.01, 0.5])
    remaining = predictor.remaining(1, num_tokens, max_tokens, quantiles, _NONE)
    assert (remaining <= max_tokens - num_tokens).all()
    assert (remaining[[0, 1, 2, 4]] >= 1).all()
    assert remaining[[3, 5]].tolist() == [0, 0]


def test_few_sequences_are_taken_to_be_long() -> None:
    predictor = StoppingPredictor(buffer=1.0)
    for length in range(1, 1001):
        predictor.observe(1, length, length, is_stop=True)
    alone = _predict(predictor, 0, 5000)
    assert alone > 800
    assert alone > _predict(predictor, 0, 5000, np.full(1000, 1))


def test_kinds_are_bounded() -> None:
    predictor = StoppingPredictor()
    for index in range(10_000):
        predictor.observe(index, 0, 5, is_stop=True)
    assert predictor.num_kinds == 64
