"""One token per row where each tensor-parallel rank holds the logits of its share of the tokens.

Rows that are greedy or drawn from everything (temperature, min-p) are decided shard by shard: the
noise is a function of the token, so each rank finds its own winner and 16 bytes per row and rank
travel. Rows that ask for more (top-k, top-p, log-probabilities, penalties, bans, grammars) have
their logits gathered on rank 0, at 4 bytes per token of the vocabulary, which draws for all.
Every rank returns the same tokens; log-probabilities are rank 0's alone.

Shapes: S rows, L tokens of a share with its padding, P rows decided shard by shard, G gathered.
"""

import numpy as np
import torch

from tokasaurus.model.device_copy import to_device
from tokasaurus.model.layers.sharding import VocabularyShare
from tokasaurus.model.parallel import RankGroup
from tokasaurus.model.sampling.draw import VocabularySlice
from tokasaurus.model.sampling.logprobs import MIN_LOGPROB
from tokasaurus.model.sampling.noise import BLOCK_SIZE
from tokasaurus.model.sampling.operations import TORCH_OPERATIONS, SamplingOperations
from tokasaurus.model.sampling.sampler import SampledTokens, SamplingBatch, drawn_rows, sample


@torch.inference_mode()
def sample_sharded(
    logits_SL: torch.Tensor,
    batch: SamplingBatch,
    share: VocabularyShare,
    ranks: RankGroup,
    operations: SamplingOperations = TORCH_OPERATIONS,
) -> SampledTokens:
    """As `sample`, with the ranks of a group. The batch's adjusted rows may lack their masks on
    other ranks than 0."""
    needs_all = needs_whole_rows(batch, share.vocab_size)
    if not needs_all.any():
        return SampledTokens(token_ids=_sample_shares(logits_SL, batch, share, ranks, operations))
    if needs_all.all():
        return _sample_gathered(logits_SL, batch, share, ranks, operations)
    plain, whole = np.flatnonzero(~needs_all), np.flatnonzero(needs_all)
    device = logits_SL.device
    plain_rows, whole_rows = to_device(plain, device), to_device(whole, device)
    drawn = _sample_shares(logits_SL[plain_rows], batch.take(plain), share, ranks, operations)
    sampled = _sample_gathered(logits_SL[whole_rows], batch.take(whole), share, ranks, operations)
    return _merge(len(needs_all), (plain_rows, drawn), (whole_rows, sampled))


def needs_whole_rows(batch: SamplingBatch, vocab_size: int) -> np.ndarray:
    """bool[S]: rows that no rank can decide with its own share."""
    is_truncated = ((batch.top_k > 0) & (batch.top_k < vocab_size)) | (batch.top_p < 1)
    needs = (is_truncated & batch.is_random) | (batch.num_top_logprobs >= 0)
    needs[batch.banned_rows] = True
    if batch.adjusted is not None:
        needs[batch.adjusted.rows] = True
    return needs


def _sample_shares(
    logits_PL: torch.Tensor,
    batch: SamplingBatch,
    share: VocabularyShare,
    ranks: RankGroup,
    operations: SamplingOperations,
) -> torch.Tensor:
    """int64[P]: each rank's best token, then the best of those, the same on all ranks."""
    maxima_PB = operations.block_maxima(logits_PL)
    # What no row may hold becomes +inf, which wins everywhere: a maximum may lose a NaN.
    peak_P = torch.nan_to_num(maxima_PB.amax(1), nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    scores_P = peak_P
    columns_P = operations.best_tokens(logits_PL, maxima_PB)
    random = np.flatnonzero(batch.is_random)
    if len(random):
        peak_P = ranks.all_reduce_max(peak_P.clone())
        drawn = drawn_rows(batch, random, peak_P)
        held = VocabularySlice(share.vocab_size, share.start // BLOCK_SIZE)
        columns, scores = operations.draw_tokens(logits_PL, maxima_PB, drawn, held)
        columns_P[drawn.rows] = columns
        scores_P = scores_P.index_put((drawn.rows,), scores)
    mine = torch.stack([scores_P.double(), (columns_P + share.start).double()])
    scores, ids = torch.stack(ranks.all_gather(mine), dim=1)
    winner = scores.argmax(0, keepdim=True)  # the lowest rank, and so the lowest id, of equals
    tokens_P = ids.gather(0, winner).squeeze(0).long()
    if not len(random):
        peak_P = scores.amax(0)
    return tokens_P.masked_fill_(~peak_P.isfinite(), -1)


def _sample_gathered(
    logits_GL: torch.Tensor,
    batch: SamplingBatch,
    share: VocabularyShare,
    ranks: RankGroup,
    operations: SamplingOperations,
) -> SampledTokens:
    parts = ranks.gather(logits_GL)
    if ranks.rank == 0:
        sampled = sample(share.join(parts), batch, operations)
    else:
        drawn_G = torch.empty(len(logits_GL), dtype=torch.int64, device=logits_GL.device)
        sampled = SampledTokens(token_ids=drawn_G)
    ranks.broadcast(sampled.token_ids)
    return sampled


def _merge(
    num_rows: int,
    plain: tuple[torch.Tensor, torch.Tensor],
    whole: tuple[torch.Tensor, SampledTokens],
) -> SampledTokens:
    (plain_rows, drawn), (whole_rows, sampled) = plain, whole
    token_ids = drawn.new_empty(num_rows)
    token_ids[plain_rows], token_ids[whole_rows] = drawn, sampled.token_ids
    merged = SampledTokens(token_ids=token_ids)
    if sampled.logprobs is not None:
        merged.logprobs = sampled.logprobs.new_full((num_rows,), MIN_LOGPROB)
        merged.logprobs[whole_rows] = sampled.logprobs
    if sampled.top_ids is not None and sampled.top_logprobs is not None:
        count = sampled.top_ids.shape[1]
        merged.top_ids = sampled.top_ids.new_zeros((num_rows, count))
        merged.top_logprobs = sampled.top_logprobs.new_full((num_rows, count), MIN_LOGPROB)
        merged.top_ids[whole_rows] = sampled.top_ids
        merged.top_logprobs[whole_rows] = sampled.top_logprobs
    return merged
