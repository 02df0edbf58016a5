"""The noise is what its documentation says, and looks random."""

import math

import numpy as np
import pytest
import torch

from tests.unit.model.sampling.reference_sampler import all_arrivals
from tokasaurus.model.sampling.noise import first_arrivals, noise_keys

WORD = (1 << 32) - 1


def mix(x: int) -> int:
    x ^= x >> 16
    x = x * 0x21F0AAAD & WORD
    x ^= x >> 15
    x = x * 0x735A2D97 & WORD
    return x ^ x >> 15


def mix64(x: int) -> int:
    mask = (1 << 64) - 1
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
    return x ^ x >> 31


def documented_arrival(seed: int, position: int, token: int, vocab_size: int) -> float:
    key = mix64(mix64((seed + 0x9E3779B97F4A7C15) & ((1 << 64) - 1)) ^ position)

    def word(counter: int) -> int:
        return mix(mix(counter ^ key & WORD) ^ key >> 32)

    def exponential(x: int) -> float:
        return -math.log1p(-min((x + 0.5) / 2**32, 1 - 2**-24))

    block = token // 64
    size = min(64, vocab_size - block * 64)
    first = word(2 * block + 1)
    arrival = exponential(first) / size
    if token != block * 64 + (mix(first ^ 0x5BD1E995) * size >> 32):
        arrival += exponential(word(2 * token))
    return arrival


@pytest.mark.parametrize(("seed", "position"), [(0, 0), (1, 7), (2**63 - 1, 131071)])
def test_arrivals_are_as_documented(seed: int, position: int) -> None:
    keys = torch.from_numpy(noise_keys(np.array([seed]), np.array([position])))
    arrivals = all_arrivals(keys, 150)[0]
    for token in range(150):
        expected = documented_arrival(seed, position, token, 150)
        assert arrivals[token].item() == pytest.approx(expected, rel=1e-5)


def test_arrivals_are_exponential_and_uncorrelated() -> None:
    seeds, positions = np.divmod(np.arange(400), 20)
    keys = torch.from_numpy(noise_keys(seeds, positions))
    vocab_size = 64 * 12 + 20
    arrivals = all_arrivals(keys, vocab_size).double()
    assert arrivals.min() > 0
    uniform = (-arrivals).exp()
    ordered = uniform.flatten().sort().values
    n = ordered.numel()
    largest_gap = (ordered - (torch.arange(n) + 0.5) / n).abs().max().item()
    assert largest_gap < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov at 0.1%
    centred = uniform - 0.5
    for left, right in (
        (centred[:, :-1], centred[:, 1:]),
        (centred[:-1], centred[1:]),
        (centred[:, :-64], centred[:, 64:]),
        (centred[:-20], centred[20:]),
    ):
        correlation = (left * right).mean().item() * 12
        assert abs(correlation) < 4.5 / math.sqrt(left.numel())


def test_first_arrival_bounds_its_block() -> None:
    keys = torch.from_numpy(noise_keys(np.arange(50), np.arange(50)))
    vocab_size = 64 * 3 + 5
    arrivals = all_arrivals(keys, vocab_size)
    first = first_arrivals(keys, torch.arange(4).unsqueeze(0), vocab_size)
    padded = torch.nn.functional.pad(arrivals, (0, 59), value=torch.inf).view(50, 4, 64)
    torch.testing.assert_close(padded.amin(-1), first, atol=0, rtol=0)


def test_first_members_are_uniform() -> None:
    keys = torch.from_numpy(noise_keys(np.arange(3000), np.zeros(3000)))
    arrivals = all_arrivals(keys, 64 * 7 + 10)
    for block, size in ((0, 64), (6, 64), (7, 10)):
        first = arrivals[:, block * 64 : block * 64 + size].argmin(1)
        counts = torch.bincount(first, minlength=size).double()
        chi_square = ((counts - 3000 / size) ** 2 / (3000 / size)).sum().item()
        assert chi_square < size + 4.5 * math.sqrt(2 * size)
