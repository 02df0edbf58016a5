"""The draw that a GPU's kernel is made from gives the tokens of the draw that looks at blocks."""

import numpy as np
import pytest
import torch

from tokasaurus.model.sampling.dense_draw import draw_densely
from tokasaurus.model.sampling.draw import DrawnRows, VocabularySlice, draw_tokens
from tokasaurus.model.sampling.noise import BLOCK_SIZE, noise_keys
from tokasaurus.model.sampling.vocabulary_blocks import block_maxima


def rows_of(logits: torch.Tensor, seed: int) -> DrawnRows:
    random = np.random.default_rng(seed)
    R = len(logits)
    return DrawnRows(
        rows=torch.arange(R),
        keys=torch.from_numpy(noise_keys(random.integers(0, 2**60, R), np.arange(R))),
        temperature=torch.from_numpy(random.uniform(0.3, 2.0, R).astype(np.float32)),
        peak=logits.amax(1),
        threshold=torch.from_numpy(random.uniform(-9, -1, R).astype(np.float32)),
    )


@pytest.mark.parametrize("vocab_size", [50, 64, 1000, 4096])
@pytest.mark.parametrize("first_block", [0, 2])
def test_same_tokens(vocab_size: int, first_block: int) -> None:
    logits = torch.randn(200, vocab_size, generator=torch.Generator().manual_seed(vocab_size)) * 3
    drawn = rows_of(logits, vocab_size)
    whole = VocabularySlice(first_block * BLOCK_SIZE + vocab_size, first_block)
    columns, scores = draw_tokens(logits, block_maxima(logits), drawn, whole)
    dense_columns, dense_scores = draw_densely(
        logits,
        drawn.keys,
        drawn.temperature,
        drawn.peak,
        drawn.threshold,
        whole.vocab_size,
        whole.first_block,
    )
    assert torch.equal(dense_columns, columns)
    torch.testing.assert_close(dense_scores, scores)
    assert len(columns.unique()) > 30
