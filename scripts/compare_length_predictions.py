"""Compares ways to predict output lengths where callers set different `max_tokens`.

    python scripts/compare_length_predictions.py

Callers of one kind draw lengths from the same distribution, but cut them differently. Of the tokens
that sequences still generate after so many, each way predicts the mean per `max_tokens`; the truth
is the mean over the very sequences that come later. Ways: absolute lengths, with cut outputs as
censored (`StoppingPredictor`); the mean of absolute lengths, cut ones included; the mean share of
`max_tokens`. The last two also look only at sequences that came as far.
"""

import argparse

import numpy as np

from tokasaurus.manager.stopping_predictor import StoppingPredictor

MIXTURES = {
    "all 4096": [4096],
    "64 and 4096": [64, 4096],
    "64, 512 and 4096": [64, 512, 4096],
    "512, 2048, 8192 and 32768": [512, 2048, 8192, 32_768],
}
LIVED = [0, 50, 200]
NUM_QUANTILES = 400
MIN_JUDGED = 100
"""Sequences that come so far; with fewer, the truth itself is uncertain."""


def draw(rng: np.random.Generator, limits: list[int], size: int) -> tuple[np.ndarray, np.ndarray]:
    """(lengths, whether or not they are cut; `max_tokens`) of `size` sequences."""
    lengths = np.maximum(1, rng.lognormal(5, 0.9, size)).astype(np.int64)
    return lengths, rng.choice(np.array(limits), size)


class Ways:
    """What each way has learned from the same sequences."""

    def __init__(self, lengths: np.ndarray, limits: np.ndarray) -> None:
        self._ends, self._limits = np.minimum(lengths, limits), limits
        predictor = StoppingPredictor(buffer=0.0)
        for index, (length, limit) in enumerate(zip(lengths, limits, strict=True)):
            predictor.observe(1, index, int(min(length, limit)), is_stop=bool(length <= limit))
        none = np.empty(0, np.int64)
        curve = predictor.curve(1, none, none)
        assert curve is not None
        self._curve = curve

    def predict(self, lived: int, limit: int) -> dict[str, float]:
        """Mean tokens still to come, by the name of the way."""
        quantiles = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
        remaining = self._curve.remaining(
            np.full(NUM_QUANTILES, lived),
            np.full(NUM_QUANTILES, limit),
            quantiles,
            np.full(NUM_QUANTILES, -1),
        )
        as_far = self._ends > lived
        share = np.mean(self._ends[as_far] / self._limits[as_far])
        return {
            "absolute, censored": float(remaining.mean()),
            "mean length": min(float(self._ends[as_far].mean()), limit) - lived,
            "mean share": max(share * limit - lived, 1.0),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-seen", type=int, default=2000, help="sequences that ways learn from")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = {}
    for name, limits in MIXTURES.items():
        rng = np.random.default_rng(args.seed)
        ways = Ways(*draw(rng, limits, args.num_seen))
        lengths, cut_at = draw(rng, limits, 100_000)
        errors: dict[str, list[float]] = {}
        for limit in limits:
            for lived in LIVED:
                ends = np.minimum(lengths[cut_at == limit], limit)
                ends = ends[ends > lived]
                if ends.size < MIN_JUDGED or lived >= limit:
                    continue
                truth = ends.mean() - lived
                for way, predicted in ways.predict(lived, limit).items():
                    errors.setdefault(way, []).append(abs(predicted - truth) / truth)
        rows[name] = {way: float(np.mean(values)) for way, values in errors.items()}
    names = list(next(iter(rows.values())))
    print(f"mean error of the tokens still to come, after {LIVED} tokens, per max_tokens")
    print("| max_tokens | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{100 * row[way]:.0f}%" for way in names) + " |")


if __name__ == "__main__":
    main()
