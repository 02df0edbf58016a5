"""How many sequences live on past each length, from those that ended and those that run.

The chance to stop at a length is estimated as Kaplan and Meier do (1958): stops there, over the
sequences that came that far. A sequence that ended by its `max_tokens`, or still runs, counts as
far as it came, so neither biases the curve.
"""

from bisect import bisect_right

import numpy as np

EDGES = np.unique(np.geomspace(1, 2**21, 400).astype(np.int64))
"""Lengths at which buckets of length begin; one token wide at first, then 4%."""
_EDGES: list[int] = EDGES.tolist()


def buckets_of(lengths: np.ndarray | float) -> np.ndarray:
    """int64: the bucket of each length; what is shorter than 1 counts as 1."""
    return np.maximum(np.searchsorted(EDGES, lengths, side="right") - 1, 0)


def bucket_of(length: int) -> int:
    """The bucket of one length."""
    return max(bisect_right(_EDGES, length) - 1, 0)


def histogram(buckets: np.ndarray) -> np.ndarray:
    """float64[edges]: how many there are in each bucket."""
    return np.bincount(buckets, minlength=EDGES.size).astype(float)


def survival_curve(stops: np.ndarray, others: np.ndarray, num_immortal: float) -> np.ndarray:
    """float64[edges]: the chance to get to each edge.

    `stops` and `others` float64[edges] are sequences by the bucket in which they stopped, or in
    which they were last seen; `num_immortal` imaginary ones never stop.
    """
    at_risk = _sum_from(stops) + _sum_from(others) - others
    hazard = stops / (np.maximum(at_risk, stops) + num_immortal)
    return np.concatenate([[1.0], np.cumprod(1 - hazard)[:-1]])


class EndCounts:
    """Ends by bucket; old ones weigh less.

    Old ends are forgotten together with the lengths that the running had passed by then: else
    those that run would seem to live on.
    """

    def __init__(self) -> None:
        self._stops = np.zeros(EDGES.size)
        self._cut = np.zeros(EDGES.size)
        """Sequences that ended for other reasons."""
        self._forgotten = np.zeros(EDGES.size)
        """Running sequences by bucket, as far as what they had passed is forgotten."""

    @property
    def num_stops(self) -> float:
        return float(self._stops.sum())

    def add(self, bucket: int, *, is_stop: bool) -> None:
        (self._stops if is_stop else self._cut)[bucket] += 1

    def forget(self, weight: float, running: np.ndarray) -> None:
        """Let what happened so far weigh so much; `running` float64[edges]: those that run."""
        self._stops *= weight
        self._cut *= weight
        self._forgotten = weight * self._forgotten + (1 - weight) * running

    def survival(self, running: np.ndarray, num_immortal: float) -> np.ndarray:
        """float64[edges]: the chance to get to each edge."""
        others = self._cut + running - self._forgotten
        return survival_curve(self._stops, others, num_immortal)


def _sum_from(values: np.ndarray) -> np.ndarray:
    """Sum of each value and all behind it."""
    return values[::-1].cumsum()[::-1]
