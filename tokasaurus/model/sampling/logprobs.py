"""Log-probabilities under the model's own distribution: before temperature, filters and bans.

Shapes: S rows, V vocabulary, K top tokens.
"""

import torch

from tokasaurus.model.sampling.vocabulary_blocks import block_maxima, largest_tokens

MIN_LOGPROB = -9999.0
"""What stands for a probability of 0 (and for a row with a NaN): -inf and NaN have no JSON."""

_ROWS_PER_PASS = 8


def log_normalizers(logits_SV: torch.Tensor, rows_R: torch.Tensor) -> torch.Tensor:
    """float32[R]: log-sum-exp of the given rows, in passes that stay in cache."""
    parts = [logits_SV.index_select(0, rows).logsumexp(1) for rows in rows_R.split(_ROWS_PER_PASS)]
    return torch.cat(parts) if parts else logits_SV.new_empty(0)


def finite_logprobs(logprobs: torch.Tensor) -> torch.Tensor:
    """Replace what JSON can't say by MIN_LOGPROB."""
    logprobs = torch.nan_to_num(logprobs, nan=MIN_LOGPROB, posinf=MIN_LOGPROB, neginf=MIN_LOGPROB)
    return logprobs.clamp_min_(MIN_LOGPROB)


def top_logprobs(
    logits_SV: torch.Tensor,
    maxima_SB: torch.Tensor,
    rows_R: torch.Tensor,
    normalizers_R: torch.Tensor,
    count: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` most likely tokens of the given rows: ids int64[R, K] and float32[R, K]."""
    values, ids = largest_tokens(logits_SV, maxima_SB, rows_R, count)
    return ids, finite_logprobs(values - normalizers_R.unsqueeze(1))


def score_tokens(
    logits_SV: torch.Tensor, targets_S: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities of given tokens (float32[S]), and of the `count` most likely ones."""
    rows = torch.arange(len(logits_SV), device=logits_SV.device)
    normalizers = log_normalizers(logits_SV, rows)
    chosen = logits_SV.gather(1, targets_S.unsqueeze(1)).squeeze(1) - normalizers
    if count == 0:
        ids, top = targets_S.new_empty(len(rows), 0), normalizers.new_empty(len(rows), 0)
    else:
        ids, top = top_logprobs(logits_SV, block_maxima(logits_SV), rows, normalizers, count)
    return finite_logprobs(chosen), ids, top
