"""Sampling by the kernels draws the tokens that plain torch draws, in every build flavour."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernel_flavours import FLAVOURS, kernels_of
from tests.unit.model.sampling.reference_sampler import assert_same_draws, make_batch
from tokasaurus.model.kernels.sampling import KernelOperations
from tokasaurus.model.sampling.adjustments import AdjustedRows, Adjustment
from tokasaurus.model.sampling.draw import DrawnRows, VocabularySlice
from tokasaurus.model.sampling.noise import BLOCK_SIZE, noise_keys
from tokasaurus.model.sampling.operations import TORCH_OPERATIONS
from tokasaurus.model.sampling.sampler import sample
from tokasaurus.model.sampling.thresholds import TruncatedRows
from tokasaurus.model.sampling.token_history import TokenHistory

VOCAB_SIZES = [1, 2, 63, 64, 65, 200, 1000, 1025, 3000, 20_000]


@pytest.fixture(params=FLAVOURS)
def operations(request: pytest.FixtureRequest) -> KernelOperations:
    return KernelOperations(kernels_of(request.param))


def random_logits(num_rows: int, vocab_size: int, seed: int, spread: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, vocab_size, generator=generator) * spread


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, dict[str, Any]]:
    num_rows = draw(st.integers(1, 6))
    spread = draw(st.sampled_from([0.0, 0.1, 1.0, 4.0, 30.0, 1000.0]))
    vocab_size = draw(st.sampled_from(VOCAB_SIZES))
    logits = random_logits(num_rows, vocab_size, draw(st.integers(0, 1000)), spread)
    if draw(st.booleans()):
        logits = logits.round()  # many ties
    if draw(st.booleans()):
        logits[:, draw(st.integers(0, vocab_size - 1)) :: 3] = -torch.inf

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=num_rows, max_size=num_rows))

    return logits, {
        "temperature": column(st.sampled_from([0.0, 0.01, 0.3, 1.0, 2.5, 1e6])),
        "top_k": column(st.sampled_from([0, 0, 1, 2, 5, 50, 500, 10**6])),
        "top_p": column(st.sampled_from([1.0, 1.0, 0.0, 0.1, 0.55, 0.9, 0.9993])),
        "min_p": column(st.sampled_from([0.0, 0.0, 0.05, 0.5, 1.0])),
        "seeds": column(st.integers(0, 2**63 - 1)),
        "positions": column(st.integers(0, 10**6)),
        "num_top_logprobs": column(st.sampled_from([-1, -1, 0, 1, 5])),
    }


@settings(max_examples=120)
@given(cases())
def test_same_tokens_as_torch(
    operations: KernelOperations, case: tuple[torch.Tensor, dict[str, Any]]
) -> None:
    logits, columns = case
    batch = make_batch(len(logits), **columns)
    expected = sample(logits.clone(), batch)
    sampled = sample(logits.clone(), batch, operations)
    assert_same_draws(logits, batch, sampled.token_ids.tolist(), expected.token_ids.tolist())
    if expected.logprobs is None:
        assert sampled.logprobs is None
        return
    assert sampled.logprobs is not None
    same = sampled.token_ids == expected.token_ids
    torch.testing.assert_close(
        sampled.logprobs[same], expected.logprobs[same], atol=2e-5, rtol=1e-5
    )


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    vocab_size=st.sampled_from(VOCAB_SIZES),
    spread=st.sampled_from([0.0, 0.5, 3.0, 200.0]),
    top_k=st.sampled_from([1, 2, 40, 700, 10**6]),
    top_p=st.floats(0, 1),
    temperature=st.sampled_from([0.05, 1.0, 7.0]),
)
def test_thresholds_equal_those_of_a_sort(
    operations: KernelOperations,
    seed: int,
    vocab_size: int,
    spread: float,
    top_k: int,
    top_p: float,
    temperature: float,
) -> None:
    logits = random_logits(1, vocab_size, seed, spread)
    top_k = min(top_k, vocab_size)
    batch = TruncatedRows(
        rows=torch.zeros(1, dtype=torch.int64),
        temperature=torch.tensor([temperature]),
        top_k=torch.tensor([top_k]),
        top_p=torch.tensor([top_p]),
        max_top_k=top_k if top_k < vocab_size else 0,
        any_top_p=top_p < 1,
        any_top_p_alone=top_p < 1 and top_k == vocab_size,
    )
    threshold = operations.truncation_thresholds(logits, operations.block_maxima(logits), batch)
    values = logits[0].sort(descending=True).values[:top_k]
    assert threshold <= values[0]
    mass = (values.double() / temperature).softmax(0)
    before = mass.cumsum(0) - mass
    # Of the tokens within rounding of the end of the nucleus either may be the last.
    rounding = 1e-5
    fewest = int((before < batch.top_p.item() - rounding).sum().clamp_min(1))
    most = int((before < batch.top_p.item() + rounding).sum().clamp_min(1))
    if batch.top_p.item() == 1:
        smallest = values[-1] if top_k < vocab_size else -torch.inf
        assert threshold == smallest
        return
    assert values[most - 1] <= threshold <= values[fewest - 1]


def test_shares_of_the_vocabulary_decide_as_the_whole(operations: KernelOperations) -> None:
    vocab_size, num_rows = 1000, 50
    logits = random_logits(num_rows, vocab_size, 4, 1.0)
    batch = DrawnRows(
        rows=torch.arange(num_rows),
        keys=torch.from_numpy(noise_keys(np.arange(num_rows), np.full(num_rows, 9))),
        temperature=torch.full((num_rows,), 1.5),
        peak=logits.amax(1),
        threshold=torch.full((num_rows,), -4.0),
    )
    whole, scores = TORCH_OPERATIONS.draw_tokens(
        logits, TORCH_OPERATIONS.block_maxima(logits), batch
    )
    middle = 5 * BLOCK_SIZE
    found = []
    for part, first in ((logits[:, :middle], 0), (logits[:, middle:], middle)):
        own = part.contiguous()
        held = VocabularySlice(vocab_size, first // BLOCK_SIZE)
        columns, best = operations.draw_tokens(own, operations.block_maxima(own), batch, held)
        found.append((columns + first, best))
    (low, low_scores), (high, high_scores) = found
    assert torch.where(low_scores >= high_scores, low, high).tolist() == whole.tolist()
    torch.testing.assert_close(torch.maximum(low_scores, high_scores), scores)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_rows_without_a_draw_are_marked_and_leave_others_alone(
    operations: KernelOperations, broken: float
) -> None:
    logits = random_logits(6, 500, 2, 1.0)
    if broken == -torch.inf:
        logits[1:5] = broken
    else:
        logits[1:5, 499] = broken
    batch = make_batch(
        6,
        temperature=[0.0, 0.0, 1.0, 1.0, 1.0, 1.0],
        top_k=[0, 0, 0, 5, 0, 0],
        top_p=[1.0, 1.0, 1.0, 0.5, 0.5, 0.5],
        num_top_logprobs=[0] * 6,
    )
    expected = sample(logits.clone(), batch)
    sampled = sample(logits.clone(), batch, operations)
    assert sampled.token_ids.tolist() == expected.token_ids.tolist()
    assert sampled.token_ids[1:5].tolist() == [-1] * 4
    assert sampled.logprobs is not None
    assert sampled.logprobs.isfinite().all()


def test_adjusted_and_banned_rows(operations: KernelOperations) -> None:
    vocab_size = 700
    logits = random_logits(4, vocab_size, 3, 2.0)
    history = TokenHistory(torch.device("cpu"), vocab_size)
    drawn = logits[2].topk(20).indices.numpy()
    adjusted = AdjustedRows(
        rows=np.array([0, 2]),
        adjustments=[
            Adjustment(banned_ids=logits[0].topk(5).indices.numpy()),
            Adjustment(frequency_penalty=3.0, seat=history.add(drawn[:0], drawn, 0)),
        ],
        history=history,
    )
    best = int(logits[3].argmax())
    batch = make_batch(4, temperature=[0.0, 1.0, 1.0, 0.0], banned=[(3, best)], top_k=30)
    batch.num_top_logprobs[:] = 3
    batch.adjusted = adjusted
    expected = sample(logits.clone(), batch)
    sampled = sample(logits.clone(), batch, operations)
    assert sampled.token_ids.tolist() == expected.token_ids.tolist()
    assert sampled.logprobs is not None
    assert expected.logprobs is not None
    torch.testing.assert_close(sampled.logprobs, expected.logprobs)
