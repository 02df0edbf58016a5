"""The draw itself: the best of logit / temperature - log(arrival), looking at few tokens.

Shapes: S rows of logits, R rows to draw for, B blocks per row, M blocks looked at, C = 64 M ids.
"""

from dataclasses import dataclass

import torch

from tokasaurus.model.sampling.noise import block_arrivals, token_arrivals
from tokasaurus.model.sampling.vocabulary_blocks import take_logits, token_ids_of_blocks

_FIRST_BLOCKS = 8
_BLOCK_GROWTH = 8


@dataclass(slots=True, kw_only=True)
class DrawnRows:
    """Rows of the logits to draw a token for."""

    rows: torch.Tensor
    """int64[R]"""
    keys: torch.Tensor
    """int64[R, 2], see `noise_keys`"""
    temperature: torch.Tensor
    """float32[R], > 0"""
    threshold: torch.Tensor
    """float32[R]: the smallest (logit - largest logit) / temperature that may be drawn."""


def draw_tokens(logits_SV: torch.Tensor, maxima_SB: torch.Tensor, batch: DrawnRows) -> torch.Tensor:
    """int64[R]; arbitrary for rows with a NaN."""
    maxima_RB = maxima_SB.index_select(0, batch.rows)
    peak_R = maxima_RB.amax(1)
    blocks = torch.arange(maxima_RB.shape[1], device=logits_SV.device).unsqueeze(0)
    arrivals, _ = block_arrivals(batch.keys, blocks, logits_SV.shape[1])
    bounds_RB = _scores(maxima_RB, peak_R, batch, arrivals)
    return _draw_within(logits_SV, bounds_RB, peak_R, batch, _FIRST_BLOCKS)


def _draw_within(
    logits_SV: torch.Tensor,
    bounds_RB: torch.Tensor,
    peak_R: torch.Tensor,
    batch: DrawnRows,
    num_looked_at: int,
) -> torch.Tensor:
    """Look at the blocks with the highest bounds, and at more where another block could win."""
    num_blocks, vocab_size = bounds_RB.shape[1], logits_SV.shape[1]
    num_looked_at = min(num_looked_at, num_blocks)
    top = bounds_RB.topk(min(num_looked_at + 1, num_blocks))
    ids_RC = token_ids_of_blocks(top.indices[:, :num_looked_at])
    arrivals = token_arrivals(batch.keys, ids_RC.clamp_max(vocab_size - 1), vocab_size)
    scores = _scores(take_logits(logits_SV, batch.rows, ids_RC), peak_R, batch, arrivals)
    best = scores.max(1, keepdim=True)
    tokens = ids_RC.gather(1, best.indices).squeeze(1)
    if num_looked_at == num_blocks:
        return tokens
    beaten = (best.values.squeeze(1) < top.values[:, -1]).nonzero().squeeze(1)
    if len(beaten):
        tokens[beaten] = _draw_within(
            logits_SV,
            bounds_RB[beaten],
            peak_R[beaten],
            DrawnRows(
                rows=batch.rows[beaten],
                keys=batch.keys[beaten],
                temperature=batch.temperature[beaten],
                threshold=batch.threshold[beaten],
            ),
            num_looked_at * _BLOCK_GROWTH,
        )
    return tokens


def _scores(
    logits: torch.Tensor, peak_R: torch.Tensor, batch: DrawnRows, arrivals: torch.Tensor
) -> torch.Tensor:
    scaled = (logits - peak_R.unsqueeze(1)) / batch.temperature.unsqueeze(1)
    dropped = scaled < batch.threshold.unsqueeze(1)
    return (scaled - arrivals.log()).masked_fill_(dropped, -torch.inf)
