"""The draw itself: the best of logit / temperature - log(arrival), looking at few tokens.

Shapes: S rows of logits, R rows to draw for, B blocks per row, M blocks looked at, C = 64 M ids,
P pairs of a row and a block.
"""

from dataclasses import dataclass

import torch

from tokasaurus.model.sampling.dense_draw import compiled_draw, mark_rows
from tokasaurus.model.sampling.noise import first_arrivals, member_arrivals
from tokasaurus.model.sampling.vocabulary_blocks import take_logits, token_ids_of_blocks

_FIRST_BLOCKS = 4
"""Blocks with the highest bounds; then only those that could still beat the best of these."""


@dataclass(slots=True, kw_only=True)
class DrawnRows:
    """Rows of the logits to draw a token for."""

    rows: torch.Tensor
    """int64[R]"""
    keys: torch.Tensor
    """int64[R, 2], see `noise_keys`"""
    temperature: torch.Tensor
    """float32[R], > 0"""
    peak: torch.Tensor
    """float32[R]: the largest logit"""
    threshold: torch.Tensor
    """float32[R]: the smallest (logit - peak) / temperature that may be drawn"""

    def scores(self, logits: torch.Tensor, arrivals: torch.Tensor) -> torch.Tensor:
        """What the race is decided by: the token with the largest score wins."""
        scaled = (logits - self.peak.unsqueeze(1)).div_(self.temperature.unsqueeze(1))
        dropped = scaled < self.threshold.unsqueeze(1)
        return scaled.sub_(arrivals.log()).masked_fill_(dropped, -torch.inf)

    def select(self, which: torch.Tensor) -> "DrawnRows":
        """The same for some of the rows; a row may appear several times."""
        return DrawnRows(
            rows=self.rows[which],
            keys=self.keys[which],
            temperature=self.temperature[which],
            peak=self.peak[which],
            threshold=self.threshold[which],
        )


@dataclass(frozen=True, slots=True)
class VocabularySlice:
    """The token ids that columns of the logits stand for: whole blocks from `first_block` on."""

    vocab_size: int
    """Of the whole vocabulary."""
    first_block: int = 0


def draw_tokens(
    logits_SV: torch.Tensor,
    maxima_SB: torch.Tensor,
    batch: DrawnRows,
    held: VocabularySlice | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The winners' columns int64[R] and their scores float32[R]; arbitrary for rows with a NaN.

    `held` says which part of the vocabulary the logits are; None: all of it.
    """
    held = held or VocabularySlice(logits_SV.shape[1])
    compiled = compiled_draw() if logits_SV.is_cuda else None
    if compiled is not None:
        everything = len(batch.rows) == len(logits_SV)
        logits_RV = logits_SV if everything else logits_SV.index_select(0, batch.rows)
        tensors = (logits_RV, batch.keys, batch.temperature, batch.peak, batch.threshold)
        mark_rows(*tensors)
        return compiled(*tensors, held.vocab_size, held.first_block)
    maxima_RB = maxima_SB.index_select(0, batch.rows)
    num_blocks = maxima_RB.shape[1]
    blocks = torch.arange(num_blocks, device=logits_SV.device).unsqueeze(0)
    arrivals = first_arrivals(batch.keys, blocks + held.first_block, held.vocab_size)
    bounds_RB = batch.scores(maxima_RB, arrivals)
    looked_at = bounds_RB.topk(min(_FIRST_BLOCKS, num_blocks)).indices
    best_R, tokens_R = _best_of(logits_SV, batch, looked_at, held)
    open_RB = bounds_RB > best_R.unsqueeze(1)
    open_RB.scatter_(1, looked_at, False)
    row, block = open_RB.nonzero(as_tuple=True)
    if len(row):
        best_P, tokens_P = _best_of(logits_SV, batch.select(row), block.unsqueeze(1), held)
        best_R.scatter_reduce_(0, row, best_P, "amax")
        winners = best_P == best_R[row]
        tokens_R[row[winners]] = tokens_P[winners]
    return tokens_R, best_R


def _best_of(
    logits_SV: torch.Tensor, batch: DrawnRows, blocks_RM: torch.Tensor, held: VocabularySlice
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best score among the tokens of some blocks, and its column."""
    arrivals = member_arrivals(batch.keys, blocks_RM + held.first_block, held.vocab_size)
    ids_RC = token_ids_of_blocks(blocks_RM)
    logits_RC = take_logits(logits_SV, batch.rows, ids_RC)
    best = batch.scores(logits_RC, arrivals.flatten(1)).max(1, keepdim=True)
    return best.values.squeeze(1), ids_RC.gather(1, best.indices).squeeze(1)
