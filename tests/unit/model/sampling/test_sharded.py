"""Ranks that each hold a share of the logits draw what one with all of them draws."""

import numpy as np
import pytest
import torch

from tests.rank_threads import on_ranks
from tokasaurus.model.layers.sharding import VocabularyShare
from tokasaurus.model.parallel import ParallelContext, RankGroup
from tokasaurus.model.sampling.adjustments import AdjustedRows, Adjustment
from tokasaurus.model.sampling.sampler import SampledTokens, SamplingBatch, sample
from tokasaurus.model.sampling.sharded import needs_whole_rows, sample_sharded
from tokasaurus.model.sampling.token_history import TokenHistory

ROWS, CPU = 12, torch.device("cpu")


def make_batch(rng: np.random.Generator, *, kinds: str) -> SamplingBatch:
    temperature = rng.choice([0.0, 0.5, 1.0, 3.0], ROWS).astype(np.float32)
    batch = SamplingBatch(
        temperature=temperature,
        top_k=np.zeros(ROWS, np.int32),
        top_p=np.ones(ROWS, np.float32),
        min_p=rng.choice([0.0, 0.1], ROWS).astype(np.float32),
        seeds=rng.integers(0, 2**60, ROWS),
        positions=rng.integers(0, 1000, ROWS),
        num_top_logprobs=np.full(ROWS, -1, np.int32),
        banned_rows=np.empty(0, np.int64),
        banned_ids=np.empty(0, np.int64),
    )
    if kinds == "plain":
        return batch
    some = rng.random(ROWS) < (0.5 if kinds == "mixed" else 2)
    batch.top_k[some] = rng.choice([0, 1, 5], some.sum())
    batch.top_p[some] = rng.choice([1.0, 0.7], some.sum())
    batch.num_top_logprobs[some] = rng.choice([-1, 0, 3], some.sum())
    batch.banned_rows, batch.banned_ids = np.array([1, 7]), np.array([2, 66])
    bias = Adjustment(bias_ids=np.array([9, 70]), bias_values=np.array([4.0, 9.0], np.float32))
    batch.adjusted = AdjustedRows(
        rows=np.array([0, 4]), adjustments=[bias, bias], history=TokenHistory(CPU, 80)
    )
    return batch


def shares(logits_SV: torch.Tensor, size: int) -> list[tuple[VocabularyShare, torch.Tensor]]:
    vocab_size, parts = logits_SV.shape[1], []
    for rank in range(size):
        share = VocabularyShare.of(vocab_size, ParallelContext(tp=RankGroup(rank, size)))
        part = torch.full((len(logits_SV), share.num_rows), -torch.inf)
        columns = slice(share.start, share.start + share.num_tokens)
        part[:, : share.num_tokens] = logits_SV[:, columns]
        parts.append((share, part))
    return parts


def run(logits_SV: torch.Tensor, batch: SamplingBatch, size: int) -> list[SampledTokens]:
    parts = shares(logits_SV, size)

    def on_rank(ranks: RankGroup) -> SampledTokens:
        share, part = parts[ranks.rank]
        return sample_sharded(part, batch, share, ranks)

    return on_ranks(size, on_rank)


@pytest.mark.parametrize("kinds", ["plain", "mixed", "whole"])
@pytest.mark.parametrize(("size", "vocab_size"), [(2, 384), (3, 1000), (4, 100)])
def test_ranks_draw_what_one_draws(kinds: str, size: int, vocab_size: int) -> None:
    rng = np.random.default_rng(size)
    batch = make_batch(rng, kinds=kinds)
    torch.manual_seed(size)
    logits = torch.randn(ROWS, vocab_size) * 3
    logits[3, :] = logits[3, 0]  # ties: the lowest id wins everywhere
    expected = sample(logits.clone(), batch)
    results = run(logits, batch, size)
    for sampled in results:
        assert torch.equal(sampled.token_ids, expected.token_ids)
    root = results[0]
    assert (root.logprobs is None) == (expected.logprobs is None)
    if expected.logprobs is not None:
        torch.testing.assert_close(root.logprobs, expected.logprobs)
    if expected.top_ids is not None:
        assert torch.equal(root.top_ids, expected.top_ids)
        torch.testing.assert_close(root.top_logprobs, expected.top_logprobs)


def test_broken_rows_are_told_by_all_ranks() -> None:
    logits = torch.randn(ROWS, 200)
    logits[0, 150] = torch.nan
    logits[1, 3] = torch.inf
    logits[2, :] = -torch.inf
    logits[3, :190] = -torch.inf
    batch = make_batch(np.random.default_rng(0), kinds="plain")
    for temperature in (0.0, 1.0):
        batch.temperature[:] = temperature
        for sampled in run(logits, batch, 3):
            tokens = sampled.token_ids
            assert tokens[:3].tolist() == [-1, -1, -1]
            assert 190 <= tokens[3] < 200
            assert (tokens[4:] >= 0).all()


def test_which_rows_have_to_be_gathered() -> None:
    batch = make_batch(np.random.default_rng(0), kinds="plain")
    assert not needs_whole_rows(batch, 100).any()
    batch.temperature[:4] = 0, 0, 1, 1
    batch.top_k[:4] = 7, 1, 1, 100
    assert not needs_whole_rows(batch, 100)[:4].any(), "greedy, or keeping all"
    batch.top_p[[0, 3]] = 0.5
    batch.banned_rows = np.array([5])
    assert np.flatnonzero(needs_whole_rows(batch, 100)).tolist() == [3, 5]
