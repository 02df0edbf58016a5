"""Penalties, biases, bans and allowed sets equal dictionaries and loops, row by row."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.unit.model.sampling.reference_sampler import make_batch
from tokasaurus.ipc.messages.to_manager import TokenSampling
from tokasaurus.ipc.messages.to_worker import AddedSlot, StepInput
from tokasaurus.model.sampling.sampler import sample
from tokasaurus.worker.slot_adjustments import SlotAdjustments

VOCAB_SIZE = 70
CPU = torch.device("cpu")


def reference_logits(
    logits: torch.Tensor, sampling: TokenSampling, prompt: list[int], output: list[int]
) -> list[float]:
    """One row, token by token."""
    values = logits.tolist()
    counts = Counter(output)
    for token, value in enumerate(values):
        if token in counts or token in prompt:
            penalty = sampling.repetition_penalty
            value = value / penalty if value > 0 else value * penalty
        value -= sampling.frequency_penalty * counts[token]
        value -= sampling.presence_penalty * (counts[token] > 0)
        values[token] = value
    for token, bias in zip(sampling.bias_ids, sampling.bias_values, strict=True):
        values[token] += bias
    for word in sampling.bad_words:
        *prefix, last = word
        if not prefix or output[-len(prefix) :] == prefix:
            values[last] = -torch.inf
    if sampling.allowed_token_ids:
        values = [
            v if token in sampling.allowed_token_ids else -torch.inf
            for token, v in enumerate(values)
        ]
    return values


def step(freed: list[int], added: list[AddedSlot]) -> StepInput:
    none = np.empty(0, np.int32)
    return StepInput(
        step_id=0,
        freed_slots=np.array(freed, np.int32),
        added_slots=added,
        appended_slots=none,
        appended_blocks=none,
        prefill_slots=none,
        prefill_lens=none,
        prefill_samples=np.empty(0, bool),
        prefill_ids=none,
        decode_slots=None,
    )


def add(slot: int, sampling: TokenSampling, prompt: list[int], output: list[int]) -> AddedSlot:
    known = np.array(prompt + output, np.int32) if sampling.depends_on_tokens else None
    return AddedSlot(slot, 0, len(prompt), sampling, known)


tokens = st.integers(0, VOCAB_SIZE - 1)
few_tokens = st.lists(st.integers(0, 5), max_size=12)
samplings = st.builds(
    lambda biases, **fields: TokenSampling(
        bias_ids=tuple(biases), bias_values=tuple(biases.values()), **fields
    ),
    biases=st.dictionaries(tokens, st.floats(-100, 100, width=32), max_size=4),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.5, -1.5]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.25, -2.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.25, 0.5]),
    allowed_token_ids=st.one_of(
        st.lists(tokens, max_size=3).map(tuple), tokens.map(lambda t: tuple(range(t + 1)))
    ),
    bad_words=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple), max_size=4)
    .map(tuple),
)  # fmt: skip


@settings(max_examples=examples(30, searching=120))
@given(st.data())
@torch.inference_mode()
def test_equals_plain_python(data: st.DataObject) -> None:
    """Sequences come, draw, go and come back at other slots with their tokens."""
    adjustments = SlotAdjustments(CPU, VOCAB_SIZE)
    seats: dict[int, tuple[TokenSampling, list[int], list[int]]] = {}
    for step_index in range(data.draw(st.integers(1, 6))):
        freed = data.draw(st.lists(st.sampled_from(sorted(seats)), unique=True)) if seats else []
        homeless = [seats.pop(slot) for slot in freed]
        new = [
            *homeless[: data.draw(st.integers(0, 4))],
            *((data.draw(samplings), data.draw(few_tokens), data.draw(few_tokens))
              for _ in range(data.draw(st.integers(0, 3)))),
        ]  # fmt: skip
        free = iter(sorted(set(range(0, 400, 7)) - set(seats)))
        added = []
        for sequence in new:
            slot = next(free)
            seats[slot] = sequence
            added.append(add(slot, *sequence))
        adjustments.apply(step(freed, added))
        chosen = data.draw(st.lists(st.sampled_from([*sorted(seats), 997]), unique=True))
        logits = torch.randn(
            len(chosen), VOCAB_SIZE, generator=torch.Generator().manual_seed(step_index)
        )
        before = logits.clone()
        adjusted = adjustments.of_rows(np.array(chosen, np.int64))
        if adjusted is not None:
            adjusted.apply(logits)
        plain = (TokenSampling(), [], [])
        for row, slot in enumerate(chosen):
            expected = reference_logits(before[row], *seats.get(slot, plain))
            np.testing.assert_allclose(logits[row].tolist(), expected, rtol=1e-5, atol=1e-5)
        drawn = data.draw(st.lists(st.integers(0, 5), min_size=len(chosen), max_size=len(chosen)))
        if adjusted is not None:
            adjustments.record(adjusted, torch.tensor(drawn))
        for slot, token in zip(chosen, drawn, strict=True):
            if slot in seats:
                sampling, prompt, output = seats[slot]
                seats[slot] = (sampling, prompt, [*output, token])


@torch.inference_mode()
def test_counts_survive_growth() -> None:
    """More seats and more distinct tokens than there was room for at first."""
    vocab_size = 5000
    adjustments = SlotAdjustments(CPU, vocab_size)
    sampling = TokenSampling(frequency_penalty=1.0)
    slots = np.arange(40)
    adjustments.apply(step([], [add(int(s), sampling, [1], []) for s in slots]))
    for i in range(300):
        adjusted = adjustments.of_rows(slots)
        assert adjusted is not None
        adjustments.record(adjusted, torch.from_numpy((slots + i * 3) % 700))
    logits = torch.zeros(40, vocab_size)
    adjusted = adjustments.of_rows(slots)
    assert adjusted is not None
    adjusted.apply(logits)
    for slot in (0, 7, 39):
        counts = Counter((slot + i * 3) % 700 for i in range(300))
        assert {t: -c for t, c in counts.items()} == {
            int(t): logits[slot, t].item() for t in logits[slot].nonzero()
        }


def batch_of(samplings: list[TokenSampling], prompts: list[list[int]], **columns: Any) -> Any:
    adjustments = SlotAdjustments(CPU, VOCAB_SIZE)
    with torch.inference_mode():
        pairs = enumerate(zip(samplings, prompts, strict=True))
        adjustments.apply(step([], [add(slot, s, p, []) for slot, (s, p) in pairs]))
    batch = make_batch(len(samplings), **columns)
    batch.adjusted = adjustments.of_rows(np.arange(len(samplings)))
    return batch


def test_logprobs_stay_those_of_the_model() -> None:
    logits = torch.randn(3, VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    samplings = [
        TokenSampling(allowed_token_ids=(5,)),
        TokenSampling(),
        TokenSampling(bias_ids=(9,), bias_values=(100.0,)),
    ]
    batch = batch_of(samplings, [[1]] * 3, temperature=0.0, num_top_logprobs=[2, 2, 0])
    drawn = sample(logits.clone(), batch)
    expected = logits.log_softmax(1)
    tokens = [5, int(logits[1].argmax()), 9]
    assert drawn.token_ids.tolist() == tokens
    np.testing.assert_allclose(drawn.logprobs, expected[range(3), tokens], atol=1e-5)
    assert drawn.top_ids[0].tolist() == logits[0].topk(2).indices.tolist()


def test_rows_that_ask_for_nothing_are_neither_read_nor_written() -> None:
    """A NaN that was looked at would spread; a write would change the value."""
    logits = torch.randn(4, VOCAB_SIZE)
    logits[1], logits[3] = torch.nan, torch.nan
    everything = TokenSampling(
        frequency_penalty=1.0,
        repetition_penalty=2.0,
        bias_ids=(3,),
        bias_values=(1.0,),
        bad_words=((4,), (5, 6)),
        allowed_token_ids=(1, 2, 3),
    )
    batch = batch_of([everything, TokenSampling(), everything, TokenSampling()], [[1, 2]] * 4)
    assert batch.adjusted.rows.tolist() == [0, 2]
    batch.adjusted.apply(logits)
    assert logits[[1, 3]].isnan().all()
    assert not logits[[0, 2]].isnan().any()
    only_plain = batch_of([TokenSampling()] * 4, [[1]] * 4)
    assert only_plain.adjusted is None


@pytest.mark.parametrize("size", [1, 2, 5])
def test_passes_of_any_size_draw_the_same(size: int) -> None:
    logits = torch.randn(7, VOCAB_SIZE, generator=torch.Generator().manual_seed(2))
    kinds = [
        TokenSampling(repetition_penalty=3.0),
        TokenSampling(),
        TokenSampling(bad_words=((1,),)),
    ]
    samplings = [kinds[i % 3] for i in range(7)]
    batch = batch_of(samplings, [[i, i + 1] for i in range(7)], seeds=list(range(7)))
    whole = sample(logits.clone(), batch).token_ids.tolist()
    parts = []
    for start in range(0, 7, size):
        which = slice(start, min(7, start + size))
        parts += sample(logits[which].clone(), batch.rows(which)).token_ids.tolist()
    assert parts == whole
