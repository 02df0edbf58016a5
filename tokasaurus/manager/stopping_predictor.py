"""Predicts how many tokens a sequence will still generate, from those that ended before it.

Per kind of request, the chance to stop at each output length is estimated as Kaplan and Meier do
(1958): stops at a length over the sequences that came that far. A sequence that ended by its
`max_tokens`, or still runs, counts as far as it came. So callers with other `max_tokens` don't
spoil the estimate, and that short outputs end first does not bias it. Old stops are forgotten
together with the lengths that were passed at that time: else those that run would seem to live on.

Where prompts are sampled several times, a prompt's samples are longer or shorter than those of its
kind by a factor, which follows from how many of them stopped and how many should have.

What is predicted is a quantile, another one for every sequence: if all were given the mean, all
that started together would seem to end together.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

_MAX_KINDS = 64
_MAX_PROMPTS = 1024
"""Remembered per kind."""
_MAX_EXITS = 128
"""Remembered per prompt."""
_PROMPT_PRIOR = 4.0
"""Imaginary samples of every prompt that stop as its kind does."""
_DECAY_EVERY = 512
_DECAY = 0.8
"""Applied to all counts every so many ends: about the last 2,500 ends of a kind matter."""
_EDGES = np.unique(np.geomspace(1, 2**21, 400).astype(np.int64))
"""Output lengths at which buckets of length begin; one token wide at first, then 4%."""


_MIN_SURVIVAL = 1e-6


class _Exits:
    """The buckets where a prompt's samples ended lately, and whether they stopped."""

    def __init__(self) -> None:
        self._buckets = np.zeros(_MAX_EXITS, np.int16)
        self._stops = np.zeros(_MAX_EXITS, bool)
        self._num_added = 0

    def __len__(self) -> int:
        return min(self._num_added, _MAX_EXITS)

    def add(self, bucket: int, *, is_stop: bool) -> None:
        place = self._num_added % _MAX_EXITS
        self._buckets[place], self._stops[place] = bucket, is_stop
        self._num_added += 1

    def num_stops(self) -> int:
        return int(np.count_nonzero(self._stops[: len(self)]))

    def num_expected(self, by_bucket: np.ndarray) -> float:
        return float(by_bucket[self._buckets[: len(self)]].sum())


_NO_EXITS = _Exits()


class _Kind:
    """What is known of one kind of request."""

    def __init__(self) -> None:
        self.stops = np.zeros(_EDGES.size)
        """Sequences that stopped in each bucket."""
        self.exits = np.zeros(_EDGES.size)
        """Sequences that ended there, for whatever reason."""
        self._forgotten = np.zeros(_EDGES.size)
        """Running sequences by bucket, as far as what they had passed is forgotten."""
        self._num_new_ends = 0
        self._exits_of: OrderedDict[int, _Exits] = OrderedDict()
        """By prompt."""

    @property
    def num_prompts(self) -> int:
        """Different prompts among those that ended last."""
        return max(1, len(self._exits_of))

    def add(self, prompt: int, num_tokens: int, *, is_stop: bool) -> None:
        bucket = int(_buckets(num_tokens))
        if prompt not in self._exits_of:
            self._exits_of[prompt] = _Exits()
        self._exits_of[prompt].add(bucket, is_stop=is_stop)
        self._exits_of.move_to_end(prompt)
        if len(self._exits_of) > _MAX_PROMPTS:
            self._exits_of.popitem(last=False)
        self.exits[bucket] += 1
        self.stops[bucket] += is_stop
        self._num_new_ends += 1

    def exits_of(self, prompt: int) -> _Exits:
        return self._exits_of.get(prompt, _NO_EXITS)

    def num_at_risk(self, running: np.ndarray) -> np.ndarray:
        """Sequences that came to the end of each bucket, or stopped in it.

        `running` float64[edges]: running sequences by bucket.
        """
        exits = _sum_from(self.exits)
        num_passed = _sum_from(running - self._forgotten) - (running - self._forgotten)
        return np.maximum(exits + num_passed, self.stops)

    def forget(self, running: np.ndarray) -> None:
        """Let the past weigh less if enough has happened since the last time."""
        if self._num_new_ends < _DECAY_EVERY:
            return
        weight = _DECAY ** (self._num_new_ends / _DECAY_EVERY)
        self.stops *= weight
        self.exits *= weight
        self._forgotten = weight * self._forgotten + (1 - weight) * running
        self._num_new_ends = 0


class StoppingPredictor:
    """Learns from every end; before it knows anything it predicts `max_tokens`."""

    def __init__(self, prior_weight: float = 8.0, buffer: float = 0.3) -> None:
        """`prior_weight` imaginary sequences never stop; they weigh less as real ones stop.

        Predictions for n sequences, from ends of n different prompts, are longer by
        buffer / sqrt(n): few may well all be long, and samples of one prompt are alike.
        """
        self._prior_weight = prior_weight
        self._buffer = buffer
        self._kinds: OrderedDict[int, _Kind] = OrderedDict()

    @property
    def num_kinds(self) -> int:
        """Kinds of request that are remembered."""
        return len(self._kinds)

    def observe(self, kind: int, prompt: int, num_tokens: int, *, is_stop: bool) -> None:
        """A sequence of this kind ended after `num_tokens` outputs, by itself if `is_stop`.

        `prompt` is the same for all samples of a prompt.
        """
        if num_tokens < 1:
            return
        if kind not in self._kinds and len(self._kinds) >= _MAX_KINDS:
            self._kinds.popitem(last=False)
        known = self._kinds.setdefault(kind, _Kind())
        self._kinds.move_to_end(kind)
        known.add(prompt, num_tokens, is_stop=is_stop)

    def curve(self, kind: int, running: np.ndarray, prompts: np.ndarray) -> "StopCurve | None":
        """What is known of a kind now; None if nothing is.

        `running` are the output lengths so far of all running sequences of the kind, and `prompts`
        tells whose samples they are.
        """
        known = self._kinds.get(kind)
        if known is None:
            return None
        buckets = _buckets(np.maximum(running, 1))
        by_bucket = np.bincount(buckets, minlength=_EDGES.size).astype(float)
        known.forget(by_bucket)
        weight = self._prior_weight / (1 + known.stops.sum() / self._prior_weight)
        hazard = known.stops / (known.num_at_risk(by_bucket) + weight)
        survival = np.concatenate([[1.0], np.cumprod(1 - hazard)[:-1]])
        num_independent = min(running.size + 1, known.num_prompts)
        return StopCurve(
            survival=survival,
            scales=_prompt_scales(known, survival, buckets, prompts),
            stretch=1 + self._buffer / math.sqrt(num_independent),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StopCurve:
    """When the sequences of a kind stop."""

    survival: np.ndarray
    """At each edge, the chance to get there."""
    scales: dict[int, float]
    """By which the samples of a prompt are longer; 1 if it is not here."""
    stretch: float
    """Predictions are longer by this factor."""

    def remaining(
        self,
        num_tokens: np.ndarray,
        max_tokens: np.ndarray,
        quantiles: np.ndarray,
        prompts: np.ndarray,
    ) -> np.ndarray:
        """int64[N]: outputs still to come after `num_tokens` (int[N]), at most up to `max_tokens`.

        `quantiles` float64[N], in (0, 1), should be spread evenly over the sequences of a kind.
        """
        most = np.maximum(max_tokens - num_tokens, 0).astype(np.int64)
        scales = np.ones(num_tokens.size)
        if self.scales:
            unique, inverse = np.unique(prompts, return_inverse=True)
            of_prompts = [self.scales.get(prompt, 1.0) for prompt in unique.tolist()]
            scales = np.array(of_prompts)[inverse]
        goal = np.interp(num_tokens / scales, _EDGES, self.survival) * (1 - quantiles)
        remaining = np.interp(goal, self.survival[::-1], _EDGES[::-1]) * scales - num_tokens
        remaining *= self.stretch
        return np.clip(np.ceil(remaining).astype(np.int64), np.minimum(1, most), most)


def _prompt_scales(
    known: _Kind, survival: np.ndarray, buckets: np.ndarray, prompts: np.ndarray
) -> dict[int, float]:
    """For the prompts with several samples, ended or running, from their stops over those expected.

    Stops rise as the square of a length's scale would have it: that is true where a chance to stop
    grows with length, and careful where it doesn't.
    """
    expected = -np.log(np.maximum(survival, _MIN_SURVIVAL))
    unique, inverse, counts = np.unique(prompts, return_inverse=True, return_counts=True)
    of_running = np.bincount(inverse, weights=expected[buckets], minlength=unique.size)
    scales = {}
    for prompt, num_running, num_expected in zip(
        unique.tolist(), counts.tolist(), of_running.tolist(), strict=True
    ):
        exits = known.exits_of(prompt)
        num_samples = num_running + len(exits)
        if num_samples < 2:
            continue
        num_expected += exits.num_expected(expected)
        of_others = 1 - 1 / num_samples  # nobody learns from himself
        ratio = (_PROMPT_PRIOR + of_others * num_expected) / (
            _PROMPT_PRIOR + of_others * exits.num_stops()
        )
        scales[prompt] = math.sqrt(ratio)
    return scales


def _buckets(num_tokens: np.ndarray | int) -> np.ndarray:
    return np.searchsorted(_EDGES, num_tokens, side="right") - 1


def _sum_from(values: np.ndarray) -> np.ndarray:
    """Sum of each value and all behind it."""
    return values[::-1].cumsum()[::-1]
