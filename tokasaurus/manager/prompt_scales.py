"""By which factor the samples of a prompt are longer than those of other prompts of its kind.

Lengths of a prompt's samples are taken to be its scale times lengths that are alike for all prompts
(accelerated failure times, the scale being a random effect). So a curve of multiples of the scale
follows from all prompts together, by the scales as they are known now. As many samples of a prompt
should have stopped as the curve's hazards, which they lived through, add up to: how many did tells
the scale, as a Poisson count, on a grid of scales with a lognormal prior.
"""

from collections import OrderedDict

import numpy as np

from tokasaurus.manager.survival import EDGES, buckets_of, survival_curve

_MAX_PROMPTS = 1024
"""Remembered per kind."""
_FIRST_ROWS = 8
"""Room for so many at first; it doubles when it is full."""
_MIN_SAMPLES = 16
"""Of a prompt, ended or running, before it is given a scale."""
_LOG_SCALES = np.linspace(-1.6, 1.6, 81)
_SCALES = np.exp(_LOG_SCALES)
_SPREAD = 0.35
_PRIOR_PROMPTS = 8
"""Before prompts are known, it is as if so many had shown that the logarithm of scales varies
around 0 with a standard deviation of `_SPREAD`."""
_UNIT = _SCALES.size // 2
"""Where the scale is 1."""
_LOG_EDGES = np.log(EDGES)
_MULTIPLES = buckets_of(EDGES / _SCALES[:, None])
"""int64[scales, edges]: buckets of the multiples that lengths are."""
_MIN_SURVIVAL = 1e-6


class PromptScales:
    """What is known of the prompts whose samples ended last, and of those that run."""

    def __init__(self) -> None:
        self._rows: OrderedDict[int, int] = OrderedDict()
        """By prompt, least recently ended first."""
        # Ended samples by row and bucket.
        self._stops = np.zeros((_FIRST_ROWS, EDGES.size), np.float32)
        self._cut = np.zeros((_FIRST_ROWS, EDGES.size), np.float32)
        self._num_ends = np.zeros(_FIRST_ROWS, np.int64)
        self._num_stops = np.zeros(_FIRST_ROWS, np.int64)
        self._places = np.full(_FIRST_ROWS, _UNIT)
        """In the grid, where each row's scale is."""
        self.scales: dict[int, float] = {}
        """Of running prompts, as they were last judged."""
        self.survival = np.ones(EDGES.size)
        """At each edge, the chance that a sample of scale 1 gets there, as last judged."""

    @property
    def num_prompts(self) -> int:
        """Different prompts among those that ended last."""
        return len(self._rows)

    def add(self, prompt: int, bucket: int, *, is_stop: bool) -> int:
        """A sample ended; how many of the prompt had done so before."""
        row = self._touch(prompt)
        (self._stops if is_stop else self._cut)[row, bucket] += 1
        self._num_stops[row] += is_stop
        self._num_ends[row] += 1
        return int(self._num_ends[row]) - 1

    def judge(self, prompts: np.ndarray, buckets: np.ndarray, num_immortal: float) -> None:
        """Judge anew, with samples of `prompts` that run and have come to `buckets`."""
        unique, inverse, counts = np.unique(prompts, return_inverse=True, return_counts=True)
        rows = np.array([self._rows.get(prompt, -1) for prompt in unique.tolist()], np.intp)
        num_samples = counts + np.where(rows >= 0, self._num_ends[rows], 0)
        is_judged = num_samples >= _MIN_SAMPLES
        self.scales = {}
        if not is_judged.any():
            return
        judged = unique[is_judged].tolist()
        rows = np.array([self._touch(prompt) for prompt in judged], np.intp)
        is_used = is_judged[inverse]
        cells = (np.cumsum(is_judged) - 1)[inverse[is_used]] * EDGES.size + buckets[is_used]
        running = np.bincount(cells, minlength=rows.size * EDGES.size).reshape(rows.size, -1)
        counted = np.union1d(rows, np.flatnonzero(self._num_ends >= _MIN_SAMPLES))
        self.survival = survival_curve(
            self._by_multiple(self._stops[counted], counted),
            self._by_multiple(self._cut[counted], counted) + self._by_multiple(running, rows),
            num_immortal,
        )
        lived = running + self._stops[rows] + self._cut[rows]
        log_scales = _LOG_SCALES[self._places[counted]]
        num_prompts = counted.size + _PRIOR_PROMPTS
        mean = log_scales.sum() / num_prompts
        deviations = np.square(log_scales - mean).sum()
        variance = (deviations + _PRIOR_PROMPTS * _SPREAD**2) / num_prompts
        num_expected = lived @ _scaled_hazards(self.survival)
        scales = _expected_scales(num_expected, self._num_stops[rows], mean, variance)
        places = np.interp(np.log(scales), _LOG_SCALES, np.arange(_SCALES.size))
        self._places[rows] = np.rint(places)
        self.scales = dict(zip(judged, scales.tolist(), strict=True))

    def _by_multiple(self, counts: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """float64[edges]: counts by prompt and bucket of length, over buckets of multiples."""
        buckets = _MULTIPLES[self._places[rows]]
        return np.bincount(buckets.ravel(), weights=counts.ravel(), minlength=EDGES.size)

    def _touch(self, prompt: int) -> int:
        """The row of a prompt, which is now the most recent."""
        row = self._rows.pop(prompt, None)
        if row is None:
            row = self._new_row()
        self._rows[prompt] = row
        return row

    def _new_row(self) -> int:
        row = len(self._rows)
        if row == _MAX_PROMPTS:
            _, row = self._rows.popitem(last=False)
        elif row == self._places.size:
            self._stops = np.concatenate([self._stops, np.zeros_like(self._stops)])
            self._cut = np.concatenate([self._cut, np.zeros_like(self._cut)])
            self._num_ends = np.concatenate([self._num_ends, np.zeros_like(self._num_ends)])
            self._num_stops = np.concatenate([self._num_stops, np.zeros_like(self._num_stops)])
            self._places = np.concatenate([self._places, np.full_like(self._places, _UNIT)])
        self._stops[row] = self._cut[row] = 0
        self._num_ends[row] = self._num_stops[row] = 0
        self._places[row] = _UNIT
        return row


def _scaled_hazards(survival: np.ndarray) -> np.ndarray:
    """float32[edges, scales]: hazard that a sample of each scale lives through up to each edge."""
    cumulated = -np.log(np.maximum(survival, _MIN_SURVIVAL))
    hazards = np.interp(_LOG_EDGES[:, None] - _LOG_SCALES, _LOG_EDGES, cumulated)
    return hazards.astype(np.float32)


def _expected_scales(
    num_expected: np.ndarray, num_stops: np.ndarray, mean: float, variance: float
) -> np.ndarray:
    """float64[prompts] from the stops that each scale would have: float64[prompts, scales].

    `mean` and `variance` are those of the logarithm of scales before a prompt is known.
    """
    log_weights = num_stops[:, None] * np.log(np.maximum(num_expected, 1e-9)) - num_expected
    log_weights -= np.square(_LOG_SCALES - mean) / (2 * variance)
    weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
    return weights @ _SCALES / weights.sum(axis=1)
