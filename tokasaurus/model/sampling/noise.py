"""Counter-based noise: an exponential arrival time for every (seed, position, token id).

A token is drawn by the Gumbel-max trick, in the form of a race: the winner is the token with the
largest logit / temperature - log(arrival), where arrivals are independent Exp(1) numbers.

Tokens are grouped into blocks of 64 consecutive ids. The first arrival among n tokens is an
Exp(n) number at a uniformly drawn member, and by memorylessness the others arrive an Exp(1) number
later. Built that way (rather than token by token) the numbers have the same joint distribution,
and the first arrival of a block bounds all its tokens: a draw need only look at a few blocks.

Hash, on unsigned 32-bit words:
    mix(x):  x ^= x >> 16;  x *= 0x21f0aaad;  x ^= x >> 15;  x *= 0x735a2d97;  x ^= x >> 15
    word(key, counter) = mix(mix(counter ^ low half of key) ^ high half of key)
    key = mix64(mix64(seed + 0x9e3779b97f4a7c15) ^ position), with splitmix64's finalizer
    counter of token t: 2t; of block b: 2b + 1
    uniform = min((word + 0.5) / 2**32, 1 - 2**-24), so neither 0 nor 1;  exponential = -log1p(-u)
    member of block b's first arrival: mix(word of the block ^ 0x5bd1e995) * n >> 32
Words are held in int64: both multipliers are below 2**31, so no product overflows and the integers
are the same on every device.

Shapes: S rows of a step, R rows, B blocks looked at per row.
"""

import numpy as np
import torch

BLOCK_SIZE = 64
"""Part of the noise's definition: changing it changes every draw."""

_WORD = 0xFFFFFFFF
_LARGEST_UNIFORM = 1 - 2.0**-24


def noise_keys(seeds_S: np.ndarray, positions_S: np.ndarray) -> np.ndarray:
    """int64[S, 2]: low and high half of each row's 64-bit key."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    key = _mix64(_mix64(seeds_S.astype(np.uint64) + golden) ^ positions_S.astype(np.uint64))
    return np.stack([key & np.uint64(_WORD), key >> np.uint64(32)], axis=1).astype(np.int64)


def first_arrivals(keys_R2: torch.Tensor, blocks_RB: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """float32[R, B]: the first arrival in each block."""
    return _exponential(_words(keys_R2, blocks_RB * 2 + 1)) / _sizes(blocks_RB, vocab_size)


def member_arrivals(
    keys_R2: torch.Tensor, blocks_RB: torch.Tensor, vocab_size: int
) -> torch.Tensor:
    """float32[R, B, 64]: when each token of the blocks arrives.

    What stands for tokens beyond the vocabulary means nothing.
    """
    word = _words(keys_R2, blocks_RB * 2 + 1)
    size = _sizes(blocks_RB, vocab_size)
    first_member = (_mix(word ^ 0x5BD1E995) * size) >> 32
    members = torch.arange(BLOCK_SIZE, device=blocks_RB.device)
    ids = (blocks_RB.unsqueeze(-1) * BLOCK_SIZE + members).flatten(1)
    later = _exponential(_words(keys_R2, ids * 2)).unflatten(1, (-1, BLOCK_SIZE))
    later.masked_fill_(first_member.unsqueeze(-1) == members, 0)
    return later.add_((_exponential(word) / size).unsqueeze(-1))


def _sizes(blocks: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Tokens of each block; blocks beyond the vocabulary (padding) mean nothing."""
    return (vocab_size - blocks * BLOCK_SIZE).clamp_(1, BLOCK_SIZE)


def _words(keys_R2: torch.Tensor, counters: torch.Tensor) -> torch.Tensor:
    low, high = keys_R2[:, :1], keys_R2[:, 1:]
    return _mix(_mix(counters ^ low) ^ high)


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = x ^ (x >> 16)
    x.mul_(0x21F0AAAD).bitwise_and_(_WORD)
    x ^= x >> 15
    x.mul_(0x735A2D97).bitwise_and_(_WORD)
    x ^= x >> 15
    return x


def _exponential(word: torch.Tensor) -> torch.Tensor:
    uniform = ((word.to(torch.float32) + 0.5) * 2.0**-32).clamp_max_(_LARGEST_UNIFORM)
    return uniform.neg_().log1p_().neg_()


def _mix64(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
