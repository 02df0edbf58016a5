"""Draws equal a plain implementation, follow the right distribution and don't see other rows."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.unit.model.sampling.reference_sampler import (
    assert_same_draws,
    kept_tokens,
    make_batch,
    reference_tokens,
)
from tokasaurus.model.sampling.logprobs import MIN_LOGPROB, score_tokens
from tokasaurus.model.sampling.sampler import sample


def random_logits(num_rows: int, vocab_size: int, seed: int, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, vocab_size, generator=generator) * spread


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, dict[str, Any]]:
    num_rows = draw(st.integers(1, 6))
    vocab_size = draw(st.sampled_from([1, 2, 63, 64, 65, 200, 1000, 3000]))
    spread = draw(st.sampled_from([0.0, 0.1, 1.0, 4.0, 30.0]))
    logits = random_logits(num_rows, vocab_size, draw(st.integers(0, 1000)), spread)
    if draw(st.booleans()):
        logits = logits.round()  # many ties

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=num_rows, max_size=num_rows))

    return logits, {
        "temperature": column(st.sampled_from([0.0, 0.3, 0.7, 1.0, 2.5])),
        "top_k": column(st.sampled_from([0, 0, 1, 2, 5, 50, 500, 10**6])),
        "top_p": column(st.sampled_from([1.0, 1.0, 0.0, 0.1, 0.55, 0.9, 0.999])),
        "min_p": column(st.sampled_from([0.0, 0.0, 0.05, 0.5, 1.0])),
        "seeds": column(st.integers(0, 2**63 - 1)),
        "positions": column(st.integers(0, 10**6)),
    }


@settings(max_examples=examples(80, searching=400))
@given(cases())
def test_equals_plain_implementation(case: tuple[torch.Tensor, dict[str, Any]]) -> None:
    logits, columns = case
    batch = make_batch(len(logits), **columns)
    tokens = sample(logits.clone(), batch).token_ids.tolist()
    assert_same_draws(logits, batch, tokens, reference_tokens(logits, batch))


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.7},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.15},
        {"temperature": 1.3, "top_k": 30, "top_p": 0.7, "min_p": 0.05},
    ],
    ids=str,
)
@pytest.mark.parametrize("vocab_size", [12, 150])
def test_follows_the_distribution(columns: dict[str, Any], vocab_size: int) -> None:
    """Chi-square over 20,000 draws; a third each over seeds, positions and both."""
    num_draws = 20_000
    logits = random_logits(1, vocab_size, 7, 1.5)[0]
    index = np.arange(num_draws)
    batch = make_batch(
        num_draws,
        seeds=np.where(index % 3 == 0, 0, index),
        positions=np.where(index % 3 == 1, 0, index),
        **columns,
    )
    tokens = sample(logits.repeat(num_draws, 1), batch).token_ids
    temperature = columns.get("temperature", 1.0)
    keep = kept_tokens(
        logits,
        temperature,
        columns.get("top_k", 0),
        columns.get("top_p", 1.0),
        columns.get("min_p", 0.0),
    )
    probs = (logits.double() / temperature).masked_fill(~keep, -torch.inf).softmax(0)
    counts = torch.bincount(tokens, minlength=vocab_size).double()
    assert counts[~keep].sum() == 0
    expected = probs[keep] * num_draws
    rare = expected < 8
    observed = torch.cat([counts[keep][~rare], counts[keep][rare].sum().view(1)])
    expected = torch.cat([expected[~rare], expected[rare].sum().view(1)])
    observed, expected = observed[expected > 0], expected[expected > 0]
    chi_square = ((observed - expected) ** 2 / expected).sum().item()
    freedom = max(1, len(expected) - 1)
    assert chi_square < freedom + 4.5 * math.sqrt(2 * freedom)


def test_same_draw_alone_in_a_batch_and_in_another_order() -> None:
    generator = np.random.default_rng(3)
    logits = random_logits(64, 5000, 1, 2.0)
    columns: dict[str, np.ndarray] = {
        "temperature": generator.choice([0.0, 0.5, 1.0, 1.5], 64),
        "top_k": generator.choice([0, 3, 40, 700], 64),
        "top_p": generator.choice([1.0, 0.9, 0.5], 64),
        "min_p": generator.choice([0.0, 0.1], 64),
        "seeds": generator.integers(0, 2**63 - 1, 64),
        "positions": generator.integers(0, 5000, 64),
    }
    together = sample(logits.clone(), make_batch(64, **columns)).token_ids
    order = generator.permutation(64)
    shuffled = {name: column[order] for name, column in columns.items()}
    reordered = sample(logits[torch.from_numpy(order)], make_batch(64, **shuffled)).token_ids
    assert reordered.tolist() == together[torch.from_numpy(order)].tolist()
    for row in range(64):
        own = {name: column[row : row + 1] for name, column in columns.items()}
        alone = sample(logits[row : row + 1].clone(), make_batch(1, **own)).token_ids
        assert alone.item() == together[row].item()


def test_flat_rows_with_a_huge_nucleus() -> None:
    """More tokens inside top-p than candidates are ever selected."""
    logits = random_logits(3, 2000, 5, 0.5)
    batch = make_batch(3, top_p=[0.95, 0.999, 0.5], top_k=[0, 0, 1500], seeds=[1, 2, 3])
    assert sample(logits.clone(), batch).token_ids.tolist() == reference_tokens(logits, batch)


def test_banned_tokens_are_not_drawn_and_keep_their_logprobs() -> None:
    logits = torch.zeros(3, 100)
    logits[:, 17] = 30.0
    logits[:, 80] = 20.0
    batch = make_batch(
        3,
        temperature=[0.0, 1.0, 0.0],
        banned=[(0, 17), (1, 17), (1, 17)],
        num_top_logprobs=[2, 2, -1],
    )
    sampled = sample(logits, batch)
    assert sampled.token_ids.tolist() == [80, 80, 17]
    assert sampled.logprobs is not None
    assert sampled.top_ids is not None
    assert sampled.top_ids[:2].tolist() == [[17, 80], [17, 80]]
    assert sampled.logprobs[0].item() == pytest.approx(-10.0, abs=1e-3)


def test_logprobs_are_of_the_unmodified_distribution() -> None:
    logits = random_logits(5, 1000, 9)
    expected = logits.double().log_softmax(-1)
    batch = make_batch(
        5, temperature=[0, 0.2, 1, 3, 1], top_k=[0, 2, 0, 9, 4], num_top_logprobs=[0, 4, -1, 2, 1]
    )
    sampled = sample(logits.clone(), batch)
    assert sampled.logprobs is not None
    assert sampled.top_ids is not None
    assert sampled.top_logprobs is not None
    assert sampled.logprobs.dtype == torch.float32
    assert sampled.top_ids.shape == sampled.top_logprobs.shape == (5, 4)
    for row in (0, 1, 3, 4):
        own = expected[row, sampled.token_ids[row]].item()
        assert sampled.logprobs[row].item() == pytest.approx(own, abs=1e-5)
        best = expected[row].topk(4)
        assert sampled.top_ids[row].tolist() == best.indices.tolist()
        torch.testing.assert_close(
            sampled.top_logprobs[row].double(), best.values, atol=1e-5, rtol=0
        )
    assert sampled.logprobs[2].item() == MIN_LOGPROB


def test_no_logprobs_unless_a_row_asks() -> None:
    sampled = sample(random_logits(2, 10, 0), make_batch(2))
    assert sampled.logprobs is sampled.top_ids is sampled.top_logprobs is None
    own = sample(random_logits(2, 10, 0), make_batch(2, num_top_logprobs=[0, -1]))
    assert own.logprobs is not None
    assert own.top_ids is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_rows_give_minus_one_and_leave_others_alone(bad: float) -> None:
    logits = random_logits(6, 300, 4)
    columns: dict[str, Any] = {
        "temperature": [0, 1, 1, 1, 0, 1],
        "top_k": [0, 0, 20, 0, 0, 20],
        "top_p": [1, 1, 0.9, 0.5, 1, 0.9],
        "num_top_logprobs": 3,
    }
    expected = sample(logits.clone(), make_batch(6, **columns)).token_ids.tolist()
    logits[:4, 123] = bad
    sampled = sample(logits, make_batch(6, **columns))
    assert sampled.token_ids.tolist() == [-1] * 4 + expected[4:]
    assert sampled.logprobs is not None
    assert sampled.top_logprobs is not None
    assert sampled.logprobs.isfinite().all()
    assert sampled.top_logprobs.isfinite().all()


def test_row_without_any_finite_logit() -> None:
    logits = torch.full((2, 70), -torch.inf)
    assert sample(logits, make_batch(2, temperature=[0, 1])).token_ids.tolist() == [-1, -1]


def test_underflowed_logprobs_are_finite() -> None:
    logits = torch.full((1, 5), -torch.inf)
    logits[0, 1] = 0.0
    logits[0, 2] = -1e30
    sampled = sample(logits, make_batch(1, num_top_logprobs=5))
    assert sampled.top_logprobs is not None
    assert sampled.top_logprobs[0].tolist() == [0.0] + [MIN_LOGPROB] * 4


def test_extreme_temperatures() -> None:
    logits = random_logits(3, 100, 2)
    batch = make_batch(3, temperature=[1e-30, 1e-4, np.inf], banned=[(2, 5)])
    tokens = sample(logits.clone(), batch).token_ids.tolist()
    assert tokens[:2] == logits[:2].argmax(1).tolist()
    assert 0 <= tokens[2] < 100


def test_empty_batch() -> None:
    assert sample(torch.empty(0, 30), make_batch(0)).token_ids.tolist() == []


def test_scores_of_given_tokens() -> None:
    logits = random_logits(20, 500, 8)
    targets = torch.arange(20) * 7
    expected = logits.double().log_softmax(-1)
    chosen, ids, top = score_tokens(logits, targets, 3)
    torch.testing.assert_close(
        chosen.double(), expected[torch.arange(20), targets], atol=1e-5, rtol=0
    )
    best = expected.topk(3)
    assert ids.tolist() == best.indices.tolist()
    torch.testing.assert_close(top.double(), best.values, atol=1e-5, rtol=0)
    assert score_tokens(logits, targets, 0)[1].shape == (20, 0)


def test_rows_of_a_batch() -> None:
    batch = make_batch(6, seeds=np.arange(6), banned=[(0, 1), (2, 3), (3, 4), (5, 6)])
    part = batch.rows(slice(2, 5))
    assert part.seeds.tolist() == [2, 3, 4]
    assert part.banned_rows.tolist() == [0, 1]
    assert part.banned_ids.tolist() == [3, 4]
