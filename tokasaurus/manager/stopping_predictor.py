"""Predicts how many tokens a sequence will still generate, from those that ended before it.

Per kind of request there is a survival curve of lengths (`survival.py`), so callers with other
`max_tokens` don't spoil it. Where prompts are sampled several times, a prompt's samples are alike
(`prompt_scales.py`): a second curve counts lengths in multiples of their prompt's scale. With the
first curve instead, those that run long would be long twice: it is flat at the end because that is
where only samples of long prompts are.

What is predicted is a quantile, another one for every sequence: if all were given the mean, all
that started together would seem to end together.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from tokasaurus.manager.prompt_scales import PromptScales
from tokasaurus.manager.survival import EDGES, EndCounts, bucket_of, buckets_of, histogram

_MAX_KINDS = 64
_FORGET_EVERY = 512
_KEPT = 0.8
"""Weight of all counts after so much news: about the last 2,500 matter."""
_JUDGED_PER_RUNNING = 1 / 32
"""Prompts are judged again when so many have ended."""
_SAMPLES_HALF_NEWS = 4.0
"""After so many ends of a prompt, its next is half the news that the first was."""


class _Kind:
    """What is known of one kind of request."""

    def __init__(self) -> None:
        self.prompts = PromptScales()
        self._ends = EndCounts()
        self._news = 0.0
        """Ends since the counts were last made to weigh less; many of one prompt count as few."""
        self._num_not_judged = 0
        """Ends since prompts were last judged."""

    def add(self, prompt: int, num_tokens: int, *, is_stop: bool) -> None:
        bucket = bucket_of(num_tokens)
        self._ends.add(bucket, is_stop=is_stop)
        self._num_not_judged += 1
        num_before = self.prompts.add(prompt, bucket, is_stop=is_stop)
        self._news += 1 / (1 + num_before / _SAMPLES_HALF_NEWS)

    def curve(
        self, running: np.ndarray, prompts: np.ndarray, prior_weight: float, buffer: float
    ) -> "StopCurve":
        buckets = buckets_of(running)
        by_bucket = histogram(buckets)
        if self._news >= _FORGET_EVERY:
            self._ends.forget(_KEPT ** (self._news / _FORGET_EVERY), by_bucket)
            self._news = 0.0
        num_immortal = prior_weight / (1 + self._ends.num_stops / prior_weight)
        if self._num_not_judged >= _JUDGED_PER_RUNNING * running.size:
            self.prompts.judge(prompts, buckets, num_immortal)
            self._num_not_judged = 0
        num_independent = min(running.size + 1, max(1, self.prompts.num_prompts))
        return StopCurve(
            survival=self._ends.survival(by_bucket, num_immortal),
            of_multiples=self.prompts.survival,
            scales=self.prompts.scales,
            stretch=1 + buffer / math.sqrt(num_independent),
        )


class StoppingPredictor:
    """Learns from every end; before it knows anything it predicts `max_tokens`."""

    def __init__(self, prior_weight: float = 8.0, buffer: float = 0.5) -> None:
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
        if kind not in self._kinds:
            if len(self._kinds) >= _MAX_KINDS:
                self._kinds.popitem(last=False)
            self._kinds[kind] = _Kind()
        self._kinds.move_to_end(kind)
        self._kinds[kind].add(prompt, num_tokens, is_stop=is_stop)

    def curve(self, kind: int, running: np.ndarray, prompts: np.ndarray) -> "StopCurve | None":
        """What is known of a kind now; None if nothing is.

        `running` are the output lengths so far of all running sequences of the kind, and `prompts`
        tells whose samples they are.
        """
        known = self._kinds.get(kind)
        if known is None:
            return None
        return known.curve(running, prompts, self._prior_weight, self._buffer)


@dataclass(frozen=True, slots=True, kw_only=True)
class StopCurve:
    """When the sequences of a kind stop."""

    survival: np.ndarray
    """At each edge, the chance to get there."""
    of_multiples: np.ndarray
    """The same for a sample of a prompt whose scale is 1, if the scale is known."""
    scales: dict[int, float]
    """By which the samples of a prompt are longer."""
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
        scales = np.zeros(num_tokens.size)
        if self.scales:
            unique, inverse = np.unique(prompts, return_inverse=True)
            of_prompts = [self.scales.get(prompt, 0.0) for prompt in unique.tolist()]
            scales = np.array(of_prompts)[inverse]
        has_scale = scales > 0
        remaining = np.empty(num_tokens.size)
        for is_chosen, survival in ((has_scale, self.of_multiples), (~has_scale, self.survival)):
            scale = np.where(has_scale, scales, 1.0)[is_chosen]
            lived = num_tokens[is_chosen]
            goal = np.interp(lived / scale, EDGES, survival) * (1 - quantiles[is_chosen])
            remaining[is_chosen] = np.interp(goal, survival[::-1], EDGES[::-1]) * scale - lived
        most = np.maximum(max_tokens - num_tokens, 0).astype(np.int64)
        remaining = np.ceil(remaining * self.stretch).astype(np.int64)
        return np.clip(remaining, np.minimum(1, most), most)
