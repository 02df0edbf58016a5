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
"""Where a nucleus is larger than this, a histogram is faster than selecting its tokens."""
_BINS_PER_NAT = 32
_NUM_BINS = 1024
"""Of the histogram; the last one holds all that is less likely than exp(-32) times the peak."""
_ROWS_PER_PASS = 4
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
    if batch.any_top_p and logits_SV.is_cuda:
        count = vocab_size  # whether fewer would do is known to the GPU only
    values, _ = largest_tokens(logits_SV, maxima_SB, batch.rows, min(count, vocab_size))
    last = values.shape[1] - 1
    kth = values.gather(1, (batch.top_k - 1).clamp_max(last).unsqueeze(1)).squeeze(1)
    floor = kth.masked_fill(~limited, -torch.inf)
    if not batch.any_top_p:
        return floor
    mass = torch.full_like(floor, torch.nan)
    if batch.any_top_p_alone and values.shape[1] < vocab_size:
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
    mass = weights.sum(1)
    if num_candidates < vocab_size:
        mass = torch.where(limited, mass, whole_mass_R.double())
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
            _binned_nucleus(
                logits_SV.index_select(0, rows.rows), rows, floor_R[start : start + len(rows.rows)]
            )
            for start, rows in _in_passes(batch)
        ]
    )


def _binned_nucleus(
    logits_RV: torch.Tensor, batch: TruncatedRows, floor_R: torch.Tensor
) -> torch.Tensor:
    """Finds the bin of the nucleus' end by a histogram of mass, then the end among its tokens."""
    peak = logits_RV.amax(1, keepdim=True)
    temperature = batch.temperature.unsqueeze(1)
    depth = ((peak - logits_RV) / temperature).masked_fill_(
        logits_RV < floor_R.unsqueeze(1), torch.inf
    )
    weights = (-depth).exp_()
    bins = torch.nan_to_num_(depth * _BINS_PER_NAT, nan=0).clamp_(0, _NUM_BINS - 1).long()
    masses = weights.new_zeros(len(bins), _NUM_BINS, dtype=torch.float64)
    masses.scatter_add_(1, bins, weights.double())
    before = masses.cumsum(1) - masses
    enough = (masses.sum(1) * batch.top_p).unsqueeze(1)
    reached = (before < enough) & (masses > 0)
    edge = (reached * torch.arange(_NUM_BINS, device=bins.device)).amax(1, keepdim=True)
    values = _ragged_rows(logits_RV, bins == edge).sort(1, descending=True).values
    weights = ((values - peak) / temperature).double().exp_()
    inside = (before.gather(1, edge) + weights.cumsum(1) - weights < enough) & (weights > 0)
    last = inside.sum(1, keepdim=True).clamp_min_(1) - 1
    return torch.maximum(values.gather(1, last).squeeze(1), floor_R)


def _ragged_rows(values_RV: torch.Tensor, chosen_RV: torch.Tensor) -> torch.Tensor:
    """The chosen values of each row, moved to the left and padded with -inf."""
    row, column = chosen_RV.nonzero(as_tuple=True)
    counts = torch.bincount(row, minlength=len(values_RV))
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    packed = values_RV.new_full((len(values_RV), int(counts.max())), -torch.inf)
    packed[row, place] = values_RV[row, column]
    return packed


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
