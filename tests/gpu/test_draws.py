"""Draws on the device: the same tokens as on a CPU, whatever the filters."""

import numpy as np
import pytest
import torch

from tokasaurus.model.sampling.sampler import SamplingBatch, sample

NUM_ROWS, VOCAB_SIZE = 64, 5000
FILTERS: dict[str, dict[str, float]] = {
    "none": {},
    "top_k": {"top_k": 20},
    "top_p": {"top_p": 0.9},
    "both": {"top_k": 50, "top_p": 0.8},
    "min_p": {"min_p": 0.05},
}


def batch(**filters: float) -> SamplingBatch:
    return SamplingBatch(
        temperature=np.linspace(0, 1.5, NUM_ROWS, dtype=np.float32),
        top_k=np.full(NUM_ROWS, filters.get("top_k", 0), np.int32),
        top_p=np.full(NUM_ROWS, filters.get("top_p", 1.0), np.float32),
        min_p=np.full(NUM_ROWS, filters.get("min_p", 0.0), np.float32),
        seeds=np.arange(NUM_ROWS),
        positions=np.arange(NUM_ROWS) * 7,
        num_top_logprobs=np.full(NUM_ROWS, 2, np.int32),
        banned_rows=np.array([3, 3, 9]),
        banned_ids=np.array([1, 2, 3]),
    )


@pytest.mark.parametrize("name", FILTERS)
def test_quick_same_tokens_as_on_a_cpu(name: str, device: torch.device) -> None:
    logits = torch.randn(NUM_ROWS, VOCAB_SIZE, generator=torch.Generator().manual_seed(0)) * 4
    expected = sample(logits.clone(), batch(**FILTERS[name]))
    drawn = sample(logits.to(device), batch(**FILTERS[name]))
    # Float errors may decide a race that is this close: at most one in a hundred.
    same = (drawn.token_ids.cpu() == expected.token_ids).float().mean()
    assert same >= 0.98
    assert drawn.logprobs is not None
    assert expected.logprobs is not None
    agreeing = drawn.token_ids.cpu() == expected.token_ids
    torch.testing.assert_close(drawn.logprobs.cpu()[agreeing], expected.logprobs[agreeing])
