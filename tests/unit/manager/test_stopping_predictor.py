"""Predictions against the true conditional mean of the lengths that are drawn."""

from dataclasses import dataclass

import numpy as np
import pytest

from tokasaurus.manager.stopping_predictor import StopCurve, StoppingPredictor

_NONE = np.empty(0, np.int64)


_QUANTILES = (np.arange(400) + 0.5) / 400


def _predict(
    predictor: StoppingPredictor, num_tokens: int, max_tokens: int, running: np.ndarray = _NONE
) -> float:
    """Mean over all quantiles, for samples of a prompt that is new."""
    curve = predictor.curve(1, running, np.arange(1000, 1000 + running.size))
    assert curve is not None
    return _mean(curve, num_tokens, max_tokens, prompt=-1)


def _mean(curve: StopCurve, num_tokens: int, max_tokens: int, prompt: int) -> float:
    remaining = curve.remaining(
        np.full(400, num_tokens), np.full(400, max_tokens), _QUANTILES, np.full(400, prompt)
    )
    return float(remaining.mean())


def test_knows_nothing_at_first() -> None:
    predictor = StoppingPredictor()
    assert predictor.curve(1, _NONE, _NONE) is None
    predictor.observe(2, 0, 10, is_stop=True)
    assert predictor.curve(1, _NONE, _NONE) is None


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


def test_the_past_is_forgotten_without_bias() -> None:
    """Many more run than are remembered to have ended: they don't seem to live on."""
    rng = np.random.default_rng(2)
    predictor = StoppingPredictor(buffer=0.0)
    most = np.maximum(1, rng.lognormal(5, 0.5, 6000)).astype(int)
    lengths = rng.integers(0, most)
    for _ in range(400):
        ends = lengths >= most
        for length in most[ends].tolist():
            predictor.observe(1, 0, length, is_stop=True)
        most[ends] = np.maximum(1, rng.lognormal(5, 0.5, int(ends.sum()))).astype(int)
        lengths[ends] = 0
        lengths += 1
        curve = predictor.curve(1, lengths, np.arange(lengths.size))
    assert curve is not None
    truth = np.exp(5 + 0.5**2 / 2)
    assert _mean(curve, 0, 4096, prompt=-1) == pytest.approx(truth, rel=0.1)


def test_samples_of_a_prompt_are_alike() -> None:
    rng = np.random.default_rng(3)
    predictor = StoppingPredictor(buffer=0.0)
    for prompt in range(40):
        median = 200 * np.exp(rng.normal(0, 0.5))
        for _ in range(50):
            length = int(median * np.exp(rng.normal(0, 0.3))) + 1
            predictor.observe(1, prompt, length, is_stop=True)
    for prompt, median in ((100, 100), (101, 400)):
        for _ in range(50):
            length = int(median * np.exp(rng.normal(0, 0.3))) + 1
            predictor.observe(1, prompt, length, is_stop=True)
    curve = predictor.curve(1, np.full(20, 1), np.repeat([100, 101], 10))
    assert curve is not None
    short, usual, long = (_mean(curve, 0, 4096, prompt) for prompt in (100, -1, 101))
    assert short < 0.75 * usual < 1.2 * usual < long


def test_a_lone_sample_says_nothing_of_its_prompt() -> None:
    predictor = StoppingPredictor()
    for prompt in range(100):
        predictor.observe(1, prompt, 10 + prompt, is_stop=True)
    curve = predictor.curve(1, np.full(20, 50), np.arange(1000, 1020))
    assert curve is not None
    assert not curve.scales


@dataclass(frozen=True)
class _Snapshot:
    """Of a batch that runs prompts of `num_samples` samples each, one prompt after the other."""

    ratio: float
    """Tokens predicted to come, over those that come."""
    release_error: float
    """Tokens held 100 steps later, as predicted, less those truly held; over those held now."""


def _run_prompts(num_prompts: int, num_samples: int, spread: float) -> list[_Snapshot]:
    """Batches of 600 sequences; a prompt's typical length varies by `spread`."""
    rng = np.random.default_rng(7)
    medians = np.log(160) + rng.normal(0, spread, num_prompts)
    lengths = rng.lognormal(np.repeat(medians, num_samples), 0.45).astype(int) + 1
    prompts = np.repeat(np.arange(num_prompts), num_samples)
    quantiles = (np.arange(lengths.size) * 0.618034) % 1
    predictor = StoppingPredictor(buffer=0.0)
    running, lived = np.empty(0, np.int64), np.empty(0, np.int64)
    num_begun, snapshots = 0, []
    for step in range(2 * lengths.sum() // 600):
        fresh = np.arange(num_begun, min(num_begun + 600 - running.size, lengths.size))
        num_begun += fresh.size
        if num_begun == lengths.size:
            break
        running = np.concatenate([running, fresh])
        lived = np.concatenate([lived, np.zeros(fresh.size, np.int64)]) + 1
        ends = lived >= lengths[running]
        for index in running[ends].tolist():
            predictor.observe(1, int(prompts[index]), int(lengths[index]), is_stop=True)
        running, lived = running[~ends], lived[~ends]
        if step % 5 == 0:
            curve = predictor.curve(1, lived, prompts[running])
        if step % 25 or step < 600:
            continue
        assert curve is not None
        most = np.full(running.size, 2048)
        remaining = curve.remaining(lived, most, quantiles[running], prompts[running])
        truth = lengths[running] - lived
        excess = (remaining > 100).astype(int) - (truth > 100)
        snapshots.append(
            _Snapshot(
                ratio=remaining.sum() / truth.sum(),
                release_error=(excess * (lived + 100)).sum() / lived.sum(),
            )
        )
    return snapshots


@pytest.mark.parametrize("num_samples", [1, 2, 16, 128])
def test_no_bias_however_often_prompts_are_sampled(num_samples: int) -> None:
    """Those that run long are not taken to be long twice: for the prompt's sake and their own."""
    snapshots = _run_prompts(8192 // num_samples, num_samples, spread=0.35)
    assert len(snapshots) > 30
    assert np.mean([s.ratio for s in snapshots]) == pytest.approx(1, abs=0.1)
    assert abs(np.mean([s.release_error for s in snapshots])) < 0.06


def test_scales_of_prompts_sharpen_what_is_foreseen() -> None:
    """With 128 samples each, five prompts run at a time: their own lengths decide."""
    snapshots = _run_prompts(64, 128, spread=0.35)
    assert np.std([s.release_error for s in snapshots]) < 0.08  # 0.13 without scales


def test_prompts_that_are_alike_get_no_scales_to_speak_of() -> None:
    snapshots = _run_prompts(64, 128, spread=0.0)
    assert np.mean([s.ratio for s in snapshots]) == pytest.approx(1, abs=0.1)


def test_many_samples_of_a_prompt_do_not_wash_out_other_prompts() -> None:
    """A thousand ends of one prompt are little news: what a new prompt may do is still known."""
    predictor = StoppingPredictor(buffer=0.0)
    for prompt in range(40):
        for _ in range(100):
            predictor.observe(1, prompt, 400 if prompt % 2 else 100, is_stop=True)
    predictor.curve(1, _NONE, _NONE)
    for _ in range(1000):
        predictor.observe(1, 41, 400, is_stop=True)
    assert _predict(predictor, 0, 4096) == pytest.approx(280, rel=0.1)


def test_never_beyond_the_limit_nor_below_one() -> None:
    predictor = StoppingPredictor()
    for length in range(1, 3000):
        predictor.observe(1, 0, length % 7 + 1, is_stop=True)
    num_tokens = np.array([0, 1, 6, 7, 5000, 10])
    max_tokens = np.array([1, 3, 7, 7, 6000, 10])
    quantiles = np.array([0.01, 0.5, 0.99, 0.3, 0.01, 0.5])
    curve = predictor.curve(1, _NONE, _NONE)
    assert curve is not None
    remaining = curve.remaining(num_tokens, max_tokens, quantiles, np.zeros(6, np.int64))
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
