"""Logits seen as blocks of consecutive token ids: one pass finds each block's maximum, and most
questions (the best token, the k best, a draw) then need only a few blocks.

Shapes: S rows, V vocabulary, B blocks per row, R selected rows, M blocks looked at, C = 64 M ids.
"""

import numpy as np
import torch

from tokasaurus.model.sampling.noise import BLOCK_SIZE


def block_maxima(logits_SV: torch.Tensor) -> torch.Tensor:
    """float32[S, B]: NaN where a block holds one."""
    num_full = logits_SV.shape[1] // BLOCK_SIZE
    end = num_full * BLOCK_SIZE
    maxima = logits_SV[:, :end].unflatten(1, (num_full, BLOCK_SIZE)).amax(-1)
    if end == logits_SV.shape[1]:
        return maxima
    return torch.cat([maxima, logits_SV[:, end:].amax(-1, keepdim=True)], dim=1)


def runs_of(rows: np.ndarray) -> list[slice]:
    """Ascending rows as slices: views of them need no copy, which costs more than reading."""
    ends = np.flatnonzero(np.diff(rows) != 1) + 1
    return [slice(int(run[0]), int(run[-1]) + 1) for run in np.split(rows, ends) if len(run)]


def token_ids_of_blocks(blocks_RM: torch.Tensor) -> torch.Tensor:
    """int64[R, C]; those of the last block may lie beyond the vocabulary."""
    members = torch.arange(BLOCK_SIZE, device=blocks_RM.device)
    return (blocks_RM.unsqueeze(-1) * BLOCK_SIZE + members).flatten(1)


def take_logits(
    logits_SV: torch.Tensor, rows_R: torch.Tensor, ids_RC: torch.Tensor
) -> torch.Tensor:
    """float32[R, C]; -inf for ids beyond the vocabulary."""
    vocab_size = logits_SV.shape[1]
    inside = ids_RC.clamp_max(vocab_size - 1)
    values = torch.take(logits_SV, inside + rows_R.unsqueeze(1) * vocab_size)
    return values.masked_fill_(ids_RC >= vocab_size, -torch.inf)


def best_tokens(logits_SV: torch.Tensor, maxima_SB: torch.Tensor) -> torch.Tensor:
    """int64[S]: the lowest id among a row's largest logits; arbitrary for rows with a NaN."""
    rows = torch.arange(len(logits_SV), device=logits_SV.device)
    ids = token_ids_of_blocks(maxima_SB.argmax(1, keepdim=True))
    best = take_logits(logits_SV, rows, ids).argmax(1, keepdim=True)
    return ids.gather(1, best).squeeze(1)


def largest_tokens(
    logits_SV: torch.Tensor, maxima_SB: torch.Tensor, rows_R: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest logits of the given rows, in descending order, and their ids.

    A token among the k largest lies in one of the k blocks with the largest maxima.
    """
    num_blocks = maxima_SB.shape[1]
    if count * 2 >= num_blocks:
        return logits_SV.index_select(0, rows_R).topk(count)
    blocks = maxima_SB.index_select(0, rows_R).topk(count, sorted=False).indices
    ids = token_ids_of_blocks(blocks)
    values, chosen = take_logits(logits_SV, rows_R, ids).topk(count)
    return values, ids.gather(1, chosen)
