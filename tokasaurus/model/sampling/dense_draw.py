"""The draw on a GPU: every token's arrival in one kernel that torch.compile makes.

Looking at a few blocks only, as `draw_tokens` does, is less work, but which ones depends on what
the GPU computed, and the host would have to wait for that.

Shapes: R rows to draw for, V columns of the logits, B blocks of them.
"""

import functools
from collections.abc import Callable

import torch

from tokasaurus.model.sampling.noise import BLOCK_SIZE, member_arrivals

Draw = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def draw_densely(
    logits_RV: torch.Tensor,
    keys_R2: torch.Tensor,
    temperature_R: torch.Tensor,
    peak_R: torch.Tensor,
    threshold_R: torch.Tensor,
    vocab_size: int,
    first_block: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The winners' columns int64[R] and their scores float32[R], of all rows of the logits.

    Arguments are those of `DrawnRows` and `VocabularySlice`.
    """
    num_columns = logits_RV.shape[1]
    num_blocks = -(-num_columns // BLOCK_SIZE)
    blocks = torch.arange(first_block, first_block + num_blocks, device=logits_RV.device)
    arrivals = member_arrivals(keys_R2, blocks.unsqueeze(0), vocab_size)
    arrivals_RV = arrivals.flatten(1)[:, :num_columns]
    scaled = (logits_RV - peak_R.unsqueeze(1)) / temperature_R.unsqueeze(1)
    dropped = scaled < threshold_R.unsqueeze(1)
    scores = (scaled - arrivals_RV.log()).masked_fill(dropped, -torch.inf)
    best = scores.max(1)
    return best.indices, best.values


@functools.cache
def compiled_draw() -> Draw | None:
    """`draw_densely` as one kernel; None where torch can't compile for the GPU."""
    from torch.utils._triton import has_triton

    return torch.compile(draw_densely, fullgraph=True) if has_triton() else None


def mark_rows(*tensors: torch.Tensor) -> None:
    """Their number is not a constant of the compiled kernel; a single row always is."""
    if len(tensors[0]) > 1:
        for tensor in tensors:
            torch._dynamo.mark_dynamic(tensor, 0)
