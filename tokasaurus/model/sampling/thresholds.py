"""top-k and top-p as one threshold per row: the smallest logit that may still be drawn.

Tokens tied with the threshold are kept, so that the set doesn't depend on how a sort breaks ties:
top-k keeps what is at least the k-th largest; top-p, on the renormalised distribution that
temperature and top-k leave, keeps a token if what is strictly more likely sums to less than top_p.

Shapes: R rows, V vocabulary, C candidates (the row's largest logits, descending).
"""

from dataclasses import dataclass

import torch

from tokasaurus.model.sampling.vocabulary_blocks import largest_tokens

_FIRST_CANDIDATES = 64
_CANDIDATE_GROWTH = 8
_MAX_CANDIDATES = 512
"""Where a nucleus is larger than this, bisection is faster than selecting its tokens."""
_ROWS_PER_PASS = 8
"""Rows that a pass over the whole vocabulary takes at once, so that it stays in cache."""


@dataclass(slots=True, kw_only=True)
class TruncatedRows:
    """Rows of the logits with top_k < V or top_p < 1."""

    rows: torch.Tensor
    """int64[R]"""
    temperature: torch.Tensor
    """float32[R], > 0"""
    top_k: torch.Tensor
    """int64[R]: 1..V"""
    top_p: torch.Tensor
    """float32[R]: at most 1"""
    max_top_k: int
    """Largest top_k below V; 0 if there is none."""
    any_top_p: bool
    any_top_p_alone: bool
    """A row has top_p < 1 and keeps all tokens in top-k."""


def truncation_thresholds(
    logits_SV: torch.Tensor, maxima_SB: torch.Tensor, batch: TruncatedRows
) -> torch.Tensor:
    """float32[R]: the smallest logit that each row keeps; -inf if it keeps all."""
    vocab_size = logits_SV.shape[1]
    limited = batch.top_k < vocab_size
    count = batch.max_top_k + 1
    if batch.any_top_p_alone:
        count = max(count, _FIRST_CANDIDATES)
    values, _ = largest_tokens(logits_SV, maxima_SB, batch.rows, min(count, vocab_size))
    last = values.shape[1] - 1
    kth = values.gather(1, (batch.top_k - 1).clamp_max(last).unsqueeze(1)).squeeze(1)
    floor = kth.masked_fill(~limited, -torch.inf)
    if not batch.any_top_p:
        return floor
    mass = torch.full_like(floor, torch.nan)
    if batch.any_top_p_alone:
        mass = _whole_mass(logits_SV, batch, values[:, 0])
    return _nucleus(logits_SV, maxima_SB, batch, values, floor, mass)


def _nucleus(
    logits_SV: torch.Tensor,
    maxima_SB: torch.Tensor,
    batch: TruncatedRows,
    values_RC: torch.Tensor,
    floor_R: torch.Tensor,
    whole_mass_R: torch.Tensor,
) -> torch.Tensor:
    """Thresholds of top-p over what `floor` keeps, from candidates, and from more where needed."""
    vocab_size, num_candidates = logits_SV.shape[1], values_RC.shape[1]
    peak = values_RC[:, :1]
    weights = ((values_RC - peak) / batch.temperature.unsqueeze(1)).double().exp_()
    weights.masked_fill_(values_RC < floor_R.unsqueeze(1), 0)
    limited = batch.top_k < vocab_size
    mass = torch.where(limited, weights.sum(1), whole_mass_R.double())
    before = weights.cumsum(1) - weights
    inside = (before < (mass * batch.top_p).unsqueeze(1)) & (weights > 0)
    num_inside = inside.sum(1).clamp_min_(1)
    threshold = values_RC.gather(1, num_inside.unsqueeze(1) - 1).squeeze(1)
    threshold = torch.where(batch.top_p < 1, torch.maximum(threshold, floor_R), floor_R)
    if num_candidates == vocab_size:
        return threshold
    # Ties with the k-th may lie beyond the candidates, and so may the end of the nucleus.
    open_ended = torch.where(limited, values_RC[:, -1] == floor_R, num_inside == num_candidates) & (
        batch.top_p < 1
    )
    unresolved = open_ended.nonzero().squeeze(1)
    if len(unresolved):
        threshold[unresolved] = _wider_nucleus(
            logits_SV,
            maxima_SB,
            _select(batch, unresolved),
            num_candidates,
            floor_R[unresolved],
            whole_mass_R[unresolved],
        )
    return threshold


def _wider_nucleus(
    logits_SV: torch.Tensor,
    maxima_SB: torch.Tensor,
    batch: TruncatedRows,
    num_candidates: int,
    floor_R: torch.Tensor,
    whole_mass_R: torch.Tensor,
) -> torch.Tensor:
    count = num_candidates * _CANDIDATE_GROWTH
    if count <= min(_MAX_CANDIDATES, logits_SV.shape[1]):
        values, _ = largest_tokens(logits_SV, maxima_SB, batch.rows, count)
        return _nucleus(logits_SV, maxima_SB, batch, values, floor_R, whole_mass_R)
    return torch.cat(
        [
            _bisected_nucleus(
                logits_SV.index_select(0, rows.rows), rows, floor_R[start : start + len(rows.rows)]
            )
            for start, rows in _in_passes(batch)
        ]
    )


def _bisected_nucleus(
    logits_RV: torch.Tensor, batch: TruncatedRows, floor_R: torch.Tensor
) -> torch.Tensor:
    """Halve the range of float32 bit patterns until the threshold is exact, on whole rows."""
    peak = logits_RV.amax(1, keepdim=True)
    weights = ((logits_RV - peak) / batch.temperature.unsqueeze(1)).exp_()
    weights.masked_fill_(logits_RV < floor_R.unsqueeze(1), 0)
    enough = weights.sum(1) * batch.top_p
    high = _ordered(peak.squeeze(1))
    least = torch.maximum(floor_R, logits_RV.amin(1))
    low = _ordered(least.clamp_min(torch.finfo(least.dtype).min)) - 1
    for _ in range(33):
        middle = (low + high) >> 1
        above = logits_RV > _unordered(middle).unsqueeze(1)
        reaches = (weights * above).sum(1) < enough
        high = torch.where(reaches, middle, high)
        low = torch.where(reaches, low, middle)
    return torch.maximum(_unordered(high), floor_R)


def _ordered(x: torch.Tensor) -> torch.Tensor:
    """float32 as int64 in the same order."""
    bits = x.view(torch.int32).to(torch.int64)
    return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _unordered(order: torch.Tensor) -> torch.Tensor:
    bits = torch.where(order < 0, -order - (1 << 31), order)
    return bits.to(torch.int32).view(torch.float32)


def _whole_mass(
    logits_SV: torch.Tensor, batch: TruncatedRows, peak_R: torch.Tensor
) -> torch.Tensor:
    masses = [
        logits_SV.index_select(0, rows.rows)
        .sub_(peak_R[start : start + len(rows.rows)].unsqueeze(1))
        .div_(rows.temperature.unsqueeze(1))
        .exp_()
        .sum(1)
        for start, rows in _in_passes(batch)
    ]
    return torch.cat(masses)


def _in_passes(batch: TruncatedRows) -> list[tuple[int, TruncatedRows]]:
    return [
        (start, _select(batch, slice(start, start + _ROWS_PER_PASS)))
        for start in range(0, len(batch.rows), _ROWS_PER_PASS)
    ]


def _select(batch: TruncatedRows, which: slice | torch.Tensor) -> TruncatedRows:
    return TruncatedRows(
        rows=batch.rows[which],
        temperature=batch.temperature[which],
        top_k=batch.top_k[which],
        top_p=batch.top_p[which],
        max_top_k=batch.max_top_k,
        any_top_p=batch.any_top_p,
        any_top_p_alone=batch.any_top_p_alone,
    )
