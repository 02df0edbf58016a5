"""Sampling written the plain way: full sorts, every token's noise, one row at a time."""

import numpy as np
import torch

from tokasaurus.model.sampling.noise import member_arrivals, noise_keys
from tokasaurus.model.sampling.sampler import SamplingBatch


def make_batch(num_rows: int, **columns: object) -> SamplingBatch:
    """Rows with the given values (scalars or one per row), else the defaults of TokenSampling."""
    defaults: dict[str, tuple[object, type]] = {
        "temperature": (1.0, np.float32),
        "top_k": (0, np.int32),
        "top_p": (1.0, np.float32),
        "min_p": (0.0, np.float32),
        "seeds": (0, np.int64),
        "positions": (np.arange(num_rows), np.int64),
        "num_top_logprobs": (-1, np.int32),
    }
    arrays = {
        name: np.broadcast_to(np.asarray(columns.pop(name, default), dtype), num_rows).copy()
        for name, (default, dtype) in defaults.items()
    }
    banned = columns.pop("banned", ())
    assert not columns, columns
    pairs = np.array(banned, np.int64).reshape(-1, 2)
    return SamplingBatch(**arrays, banned_rows=pairs[:, 0].copy(), banned_ids=pairs[:, 1].copy())


def all_arrivals(keys_R2: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """float32[R, V]"""
    blocks = torch.arange(-(-vocab_size // 64)).expand(len(keys_R2), -1)
    return member_arrivals(keys_R2, blocks, vocab_size).flatten(1)[:, :vocab_size]


def kept_tokens(
    logits: torch.Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    slack: float = 0.0,
) -> torch.Tensor:
    """bool[V]: what the filters leave, ties at a boundary included.

    `slack` widens top-p and min-p by that much.
    """
    scaled = logits.double() / temperature
    keep = torch.isfinite(scaled)
    if 0 < top_k < len(logits):
        keep &= scaled >= scaled.sort(descending=True).values[top_k - 1]
    if top_p < 1:
        probs = scaled.masked_fill(~keep, -torch.inf).softmax(0)
        more_likely = torch.stack([probs[scaled > x].sum() for x in scaled])
        keep &= (more_likely < top_p + slack) | (scaled == scaled.max())
    probs = scaled.masked_fill(~keep, -torch.inf).softmax(0)
    return keep & (probs >= min_p * probs.max() * (1 - 1e-6 - slack))


def reference_tokens(logits_SV: torch.Tensor, batch: SamplingBatch) -> list[int]:
    logits_SV = logits_SV.clone()
    logits_SV[batch.banned_rows, batch.banned_ids] = -torch.inf
    tokens = []
    for row, logits in enumerate(logits_SV):
        if batch.temperature[row] == 0 or batch.top_k[row] == 1:
            tokens.append(int(logits.argmax()))
            continue
        keys = torch.from_numpy(noise_keys(batch.seeds, batch.positions)[row : row + 1])
        arrivals = all_arrivals(keys, len(logits))[0]
        temperature = float(batch.temperature[row])
        keep = kept_tokens(
            logits, temperature, int(batch.top_k[row]), float(batch.top_p[row]), batch.min_p[row]
        )
        scores = (logits - logits.max()) / temperature - arrivals.log()
        tokens.append(int(scores.masked_fill(~keep, -torch.inf).argmax()))
    return tokens


def assert_same_draws(
    logits_SV: torch.Tensor, batch: SamplingBatch, drawn: list[int], expected: list[int]
) -> None:
    """Two ways of computing drew the same tokens, but where float32's rounding decides."""
    assert len(drawn) == len(expected) == len(logits_SV)
    for row, tokens in enumerate(zip(drawn, expected, strict=True)):
        if tokens[0] != tokens[1]:
            assert min(tokens) >= 0, (row, tokens)
            assert_rounding_decides(logits_SV[row], batch.rows(slice(row, row + 1)), tokens)


def assert_rounding_decides(
    logits: torch.Tensor, batch: SamplingBatch, tokens: tuple[int, ...]
) -> None:
    """In float64, each of the tokens may win the row's draw, give or take a rounding."""
    assert batch.is_random.all(), "greedy draws are exact"
    logits = logits.double()
    logits[batch.banned_ids] = -torch.inf
    temperature = float(batch.temperature[0])
    filters = (int(batch.top_k[0]), float(batch.top_p[0]), float(batch.min_p[0]))
    at_most = kept_tokens(logits, temperature, *filters, slack=1e-5)
    at_least = kept_tokens(logits, temperature, *filters, slack=-1e-5)
    scaled = (logits - logits.max()) / temperature
    keys = torch.from_numpy(noise_keys(batch.seeds, batch.positions))
    scores = scaled - all_arrivals(keys, len(logits))[0].double().log()
    # The difference, the quotient and the two logarithms are rounded, relative to what they are.
    error = 2**-21 * (1 + scaled.abs() + scores.abs())
    best = (scores - error)[at_least].max()
    for token in tokens:
        assert at_most[token], token
        assert scores[token] + error[token] >= best, token
