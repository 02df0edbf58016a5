"""Predicts how many tokens a sequence will still generate, from those that ended before it.

Per kind of request, the chance to stop at each output length is estimated as Kaplan and Meier do
(1958): stops at a length over the sequences that came that far. A sequence that ended by its
`max_tokens`, or still runs, counts as far as it came. So callers with other `max_tokens` don't
spoil the estimate, and that short outputs end first does not bias it.

What is predicted is a quantile, another one for every sequence: if all were given the mean, all
that started together would seem to end together.
"""

import math
from collections import OrderedDict

import numpy as np

_MAX_KINDS = 64
_MAX_PROMPTS = 1024
"""Remembered per kind."""
_DECAY_EVERY = 512
_DECAY = 0.8
"""Applied to all counts every so many ends: about the last 2,500 ends of a kind matter."""
_EDGES = np.unique(np.geomspace(1, 2**21, 400).astype(np.int64))
"""Output lengths at which buckets of length begin; one token wide at first, then 4%."""


class _Kind:
    """What is known of one kind of request."""

    def __init__(self) -> None:
        self.stops = np.zeros(_EDGES.size)
        """Sequences that stopped in each bucket."""
        self.exits = np.zeros(_EDGES.size)
        """Sequences that ended there, for whatever reason."""
        self._num_ends = 0
        self._prompts: OrderedDict[int, None] = OrderedDict()

    @property
    def num_prompts(self) -> int:
        """Different prompts among those that ended last."""
        return max(1, len(self._prompts))

    def add(self, prompt: int, num_tokens: int, *, is_stop: bool) -> None:
        self._prompts[prompt] = None
        self._prompts.move_to_end(prompt)
        if len(self._prompts) > _MAX_PROMPTS:
            self._prompts.popitem(last=False)
        bucket = int(np.searchsorted(_EDGES, num_tokens, side="right")) - 1
        self.exits[bucket] += 1
        self.stops[bucket] += is_stop
        self._num_ends += 1
        if self._num_ends % _DECAY_EVERY == 0:
            self.stops *= _DECAY
            self.exits *= _DECAY


class StoppingPredictor:
    """Learns from every end; before it knows anything it predicts `max_tokens`."""

    def __init__(self, prior_weight: float = 8.0, buffer: float = 0.7) -> None:
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

    def remaining(
        self,
        kind: int,
        num_tokens: np.ndarray,
        max_tokens: np.ndarray,
        quantiles: np.ndarray,
        running: np.ndarray,
    ) -> np.ndarray:
        """int64[N]: outputs still to come after `num_tokens` (int[N]), at most up to `max_tokens`.

        `quantiles` float64[N], in (0, 1), should be spread evenly over the sequences of a kind.
        `running` are the output lengths so far of all running sequences of the kind.
        """
        most = np.maximum(max_tokens - num_tokens, 0).astype(np.int64)
        known = self._kinds.get(kind)
        if known is None:
            return most
        survival = self._survival(known, running)
        goal = np.interp(num_tokens, _EDGES, survival) * (1 - quantiles)
        remaining = np.interp(goal, survival[::-1], _EDGES[::-1]) - num_tokens
        num_independent = min(running.size + 1, known.num_prompts)
        remaining *= 1 + self._buffer / math.sqrt(num_independent)
        return np.clip(np.ceil(remaining).astype(np.int64), np.minimum(1, most), most)

    def _survival(self, known: _Kind, running: np.ndarray) -> np.ndarray:
        """At each edge, the chance to get there."""
        still_there = np.bincount(
            np.searchsorted(_EDGES, np.maximum(running, 1), side="right") - 1,
            minlength=_EDGES.size,
        )
        ended_later = known.exits[::-1].cumsum()[::-1]
        running_later = still_there[::-1].cumsum()[::-1] - still_there
        weight = self._prior_weight / (1 + known.stops.sum() / self._prior_weight)
        hazard = known.stops / (ended_later + running_later + weight)
        return np.concatenate([[1.0], np.cumprod(1 - hazard)[:-1]])
