"""Steps over a tiny Llama give transformers' tokens and log-probabilities."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from tests.unit.worker.conftest import PAGE_SIZE, VOCAB_SIZE
from tests.unit.worker.step_driver import StepDriver
from tokasaurus.ipc.messages.to_manager import TokenSampling
from tokasaurus.ipc.messages.to_worker import HydragenGroup, StepInput
from tokasaurus.worker import step_sampler
from tokasaurus.worker.torch_runner import TorchRunner

GREEDY = TokenSampling(temperature=0.0)
Reference = Callable[[torch.Tensor], object]


def prompt(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB_SIZE, length).tolist()


@torch.no_grad()
def reference_logits(model: torch.nn.Module, tokens: Sequence[int]) -> torch.Tensor:
    return model(torch.tensor([tokens])).logits[0].double()


def greedy(model: torch.nn.Module, tokens: Sequence[int], count: int) -> list[int]:
    tokens = list(tokens)
    for _ in range(count):
        (best, second), (token, _) = reference_logits(model, tokens)[-1].topk(2)
        assert best - second > 1e-4, "rounding may decide: choose another prompt"
        tokens.append(int(token))
    return tokens[-count:]


@pytest.fixture
def driver(make_runner: Callable[..., TorchRunner]) -> StepDriver:
    return StepDriver(make_runner(), PAGE_SIZE)


def test_properties(make_runner: Callable[..., TorchRunner]) -> None:
    runner = make_runner()
    assert runner.num_blocks == 1024 // PAGE_SIZE
    assert runner.vocab_size == VOCAB_SIZE
    assert runner.max_model_len == 128
    assert runner.capabilities.hydragen
    assert not runner.capabilities.async_steps
    assert runner.description == "native llama, cpu, float32, attention torch"


def test_chunked_prefill_in_mixed_batches(driver: StepDriver, reference: torch.nn.Module) -> None:
    a = driver.add(0, prompt(1, 11), GREEDY)
    b = driver.add(1, prompt(2, 30), GREEDY)
    c = driver.add(5, prompt(3, 1), GREEDY)
    driver.run(prefill=[(a, 11), (b, 7)])
    driver.run(prefill=[(b, 13), (c, 1)], decode=[a])
    driver.run(prefill=[(b, 10)], decode=[c, a])
    driver.finish([a, b, c], 12)
    for sequence, seed, length in ((a, 1, 11), (b, 2, 30), (c, 3, 1)):
        assert sequence.output == greedy(reference, prompt(seed, length), 12)


def test_blocks_shared_in_the_step_that_fills_them(
    driver: StepDriver, reference: torch.nn.Module
) -> None:
    common = prompt(4, 3 * PAGE_SIZE)
    a = driver.add(0, common + prompt(5, 3), GREEDY)
    # The leader's chunk is scheduled in this very step; its first blocks are known beforehand.
    leader_blocks = driver._free_blocks[-1:-4:-1]
    b = driver.add(1, common + prompt(6, 6), GREEDY, shared_blocks=leader_blocks)
    driver.run(prefill=[(a, len(a.tokens)), (b, 6)])
    assert a.blocks[:3] == b.blocks[:3]
    driver.finish([a, b], 6)
    assert a.output == greedy(reference, common + prompt(5, 3), 6)
    assert b.output == greedy(reference, common + prompt(6, 6), 6)


def test_slot_and_blocks_are_reused(driver: StepDriver, reference: torch.nn.Module) -> None:
    a = driver.add(0, prompt(7, 20), TokenSampling(temperature=1.5, num_top_logprobs=3))
    driver.run(prefill=[(a, 20)])
    driver.run(decode=[a])
    driver.free(a)
    b = driver.add(0, prompt(8, 9), GREEDY)
    output = driver.run(prefill=[(b, 9)])
    assert output.logprobs is None
    driver.finish([b], 8)
    assert b.output == greedy(reference, prompt(8, 9), 8)


@pytest.mark.parametrize("sampling", [GREEDY, TokenSampling(temperature=0.9, top_p=0.9, seed=77)])
def test_reonboarding_keeps_the_tokens(
    driver: StepDriver, reference: torch.nn.Module, sampling: TokenSampling
) -> None:
    undisturbed = driver.add(0, prompt(9, 10), sampling)
    driver.run(prefill=[(undisturbed, 10)])
    driver.finish([undisturbed], 12)
    if sampling is GREEDY:
        assert undisturbed.output == greedy(reference, prompt(9, 10), 12)
    a = driver.add(3, prompt(9, 10), sampling)
    driver.run(prefill=[(a, 10)])
    driver.finish([a], 5)
    driver.free(a)
    again = driver.add(1, a.tokens, sampling, num_prompt_tokens=10)
    other = driver.add(3, prompt(10, 6), TokenSampling(seed=5))
    driver.run(prefill=[(other, 6), (again, 9)])
    driver.run(prefill=[(again, 6)], decode=[other])
    driver.finish([again], 12)
    assert again.output == undisturbed.output


def test_same_seed_same_tokens_in_any_company(driver: StepDriver) -> None:
    sampling = TokenSampling(temperature=1.0, top_k=40, seed=123)
    alone = driver.add(0, prompt(11, 13), sampling)
    driver.run(prefill=[(alone, 13)])
    driver.finish([alone], 10)
    crowd = [driver.add(i + 1, prompt(20 + i, 5), TokenSampling(seed=i)) for i in range(6)]
    member = driver.add(9, prompt(11, 13), sampling)
    driver.run(prefill=[*((s, 5) for s in crowd), (member, 13)])
    driver.finish([*crowd[:3], member, *crowd[3:]], 10)
    assert member.output == alone.output


def test_hydragen_equals_plain(driver: StepDriver, reference: torch.nn.Module) -> None:
    common = prompt(12, 4 * PAGE_SIZE)
    leader = driver.add(0, [*common, 1], GREEDY)
    driver.run(prefill=[(leader, len(leader.tokens))])
    rest = [
        driver.add(i, common + prompt(30 + i, i), GREEDY, shared_blocks=leader.blocks[:4])
        for i in (1, 2, 3)
    ]
    single = driver.add(6, prompt(40, 3), GREEDY)
    driver.run(prefill=[(s, len(s.tokens) - s.num_computed) for s in [*rest, single]])
    order = [single, leader, *rest]
    driver.run(decode=order, hydragen=[HydragenGroup(1, 4, 4)])
    for _ in range(4):
        driver.run(decode=order)
    for sequence in order:
        expected = greedy(reference, sequence.tokens[: sequence.num_prompt_tokens], 6)
        assert sequence.output[:6] == expected


def test_freed_slot_leaves_the_repeated_decode_list(
    make_runner: Callable[..., TorchRunner], reference: torch.nn.Module
) -> None:
    runner = make_runner()
    driver = StepDriver(runner, PAGE_SIZE)
    sequences = [driver.add(i, prompt(50 + i, 4), GREEDY) for i in range(3)]
    driver.run(prefill=[(s, 4) for s in sequences])
    driver.run(decode=sequences)
    none = np.empty(0, np.int32)
    step = StepInput(
        step_id=9,
        freed_slots=np.array([1], np.int32),
        appended_slots=none,
        appended_blocks=none,
        prefill_slots=none,
        prefill_lens=none,
        prefill_samples=np.empty(0, bool),
        prefill_ids=none,
        decode_slots=None,
    )
    tokens = runner.execute(step).result().token_ids.tolist()
    assert tokens == [greedy(reference, prompt(50 + i, 4), 3)[-1] for i in (0, 2)]


def test_step_without_tokens(make_runner: Callable[..., TorchRunner]) -> None:
    driver = StepDriver(make_runner(), PAGE_SIZE)
    a = driver.add(0, prompt(1, 3), GREEDY)
    driver.run(prefill=[(a, 2)])
    driver.free(a)
    output = driver.run()
    assert output.token_ids.tolist() == []
    assert output.prompt_logprobs == []


def test_logprobs_of_drawn_and_top_tokens(driver: StepDriver, reference: torch.nn.Module) -> None:
    a = driver.add(0, prompt(13, 8), TokenSampling(temperature=0.7, seed=3, num_top_logprobs=4))
    b = driver.add(1, prompt(14, 8), GREEDY)
    driver.run(prefill=[(a, 8), (b, 8)])
    driver.finish([a, b], 5)
    for i, token in enumerate(a.output):
        expected = reference_logits(reference, a.tokens[: 8 + i])[-1].log_softmax(-1)
        assert a.logprobs[i] == pytest.approx(expected[token].item(), abs=1e-4)
        assert a.top_ids[i] == expected.topk(4).indices.tolist()


def test_min_tokens_bans_until_the_count_is_reached(
    driver: StepDriver, reference: torch.nn.Module
) -> None:
    plain = greedy(reference, prompt(15, 6), 1)[0]
    sampling = TokenSampling(temperature=0.0, min_tokens=3, banned_until_min_tokens=(plain, 9999))
    a = driver.add(0, prompt(15, 6), sampling)
    driver.run(prefill=[(a, 6)])
    driver.finish([a], 4)
    assert plain not in a.output[:3]
    expected = reference_logits(reference, prompt(15, 6))[-1]
    expected[plain] = -torch.inf
    assert a.output[0] == int(expected.argmax())
    assert a.output[3] == greedy(reference, a.tokens[:9], 1)[0]


@pytest.mark.parametrize("chunks", [[23], [1, 22], [9, 1, 13], [22, 1]])
@pytest.mark.parametrize("max_bytes", [1, 64 << 20])
def test_prompt_logprobs_over_chunks(
    make_runner: Callable[..., TorchRunner],
    reference: torch.nn.Module,
    monkeypatch: pytest.MonkeyPatch,
    chunks: list[int],
    max_bytes: int,
) -> None:
    monkeypatch.setattr(step_sampler, "_MAX_LOGITS_BYTES", max_bytes)
    driver = StepDriver(make_runner(), PAGE_SIZE)
    other = driver.add(0, prompt(17, 5), GREEDY)
    a = driver.add(1, prompt(16, 23), TokenSampling(temperature=0.0, num_prompt_logprobs=2))
    driver.run(prefill=[(other, 5), (a, chunks[0])])
    for length in chunks[1:]:
        driver.run(prefill=[(a, length)], decode=[other])
    driver.run(decode=[a])
    expected = reference_logits(reference, prompt(16, 23)).log_softmax(-1)[:-1]
    position = 0
    for scores in a.prompt_logprobs:
        assert scores.start == position
        position += len(scores.logprobs)
    assert position == 22
    own = np.concatenate([scores.logprobs for scores in a.prompt_logprobs])
    targets = torch.tensor(prompt(16, 23)[1:])
    np.testing.assert_allclose(own, expected[torch.arange(22), targets].numpy(), atol=1e-4)
    top = np.concatenate([scores.top_ids for scores in a.prompt_logprobs])
    assert top.tolist() == expected.topk(2).indices.tolist()


def test_sampling_in_passes_changes_nothing(
    make_runner: Callable[..., TorchRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn() -> tuple[list[list[int]], list[list[float]]]:
        driver = StepDriver(make_runner(), PAGE_SIZE)
        sequences = [
            driver.add(
                i,
                prompt(60 + i, 5),
                TokenSampling(
                    temperature=i / 4,
                    seed=i,
                    num_top_logprobs=(-1, 0, 3, 1, -1)[i],
                    min_tokens=3,
                    banned_until_min_tokens=(i, 7),
                ),
            )
            for i in range(5)
        ]
        output = driver.run(prefill=[(s, 5) for s in sequences])
        assert output.top_ids is not None
        assert output.top_ids.shape == (5, 3)
        driver.finish(sequences, 6)
        return [s.output for s in sequences], [s.logprobs for s in sequences]

    tokens, logprobs = drawn()
    monkeypatch.setattr(step_sampler, "_MAX_LOGITS_BYTES", 2 * 4 * VOCAB_SIZE)
    tokens_in_passes, logprobs_in_passes = drawn()
    assert tokens_in_passes == tokens
    for in_passes, together in zip(logprobs_in_passes, logprobs, strict=True):
        np.testing.assert_allclose(in_passes, together, rtol=0, atol=1e-5)


def test_a_row_with_nan_ends_alone(
    make_runner: Callable[..., TorchRunner], reference: torch.nn.Module
) -> None:
    """Its token is -1, it can go on running, and its blocks can be reused."""
    runner = make_runner()
    driver = StepDriver(runner, PAGE_SIZE)
    a = driver.add(0, prompt(18, 6), GREEDY)
    b = driver.add(1, prompt(19, 6), TokenSampling(temperature=1.0, num_top_logprobs=2))
    model = runner._model
    forward = model.forward

    def broken(ids: torch.Tensor, positions: torch.Tensor, attention: object) -> torch.Tensor:
        hidden = forward(ids, positions, attention).clone()  # type: ignore[arg-type]
        hidden[-1] = math.nan
        for cache in runner._backend._caches[0]:  # type: ignore[attr-defined]
            cache[b.blocks] = math.nan
        return hidden

    model.forward = broken  # type: ignore[method-assign]
    output = driver.run(prefill=[(a, 6), (b, 6)])
    model.forward = forward  # type: ignore[method-assign]
    assert output.token_ids[1] == -1
    assert output.logprobs is not None
    assert np.isfinite(output.logprobs).all()
    assert driver.run(decode=[a, b]).token_ids[1] == -1
    driver.free(b)
    driver.run(decode=[a])
    c = driver.add(1, prompt(21, 7), GREEDY)
    assert driver._free_blocks[-1] in b.blocks
    driver.run(prefill=[(c, 7)], decode=[a])
    driver.finish([a, c], 6)
    assert a.output == greedy(reference, prompt(18, 6), len(a.output))
    assert c.output == greedy(reference, prompt(21, 7), 6)


def test_many_slots(driver: StepDriver, reference: torch.nn.Module) -> None:
    """Slots beyond the table's first capacity, added while others run."""
    a = driver.add(3, prompt(70, 5), GREEDY)
    driver.run(prefill=[(a, 5)])
    far = driver.add(200, prompt(71, 5), GREEDY)
    driver.run(prefill=[(far, 5)], decode=[a])
    driver.finish([a, far], 6)
    assert a.output == greedy(reference, prompt(70, 5), 6)
    assert far.output == greedy(reference, prompt(71, 5), 6)


def test_ids_outside_the_vocabulary_harm_nobody_else(
    driver: StepDriver, reference: torch.nn.Module
) -> None:
    a = driver.add(0, prompt(80, 5), GREEDY)
    b = driver.add(1, [3, VOCAB_SIZE, -1, 10**9], GREEDY)
    driver.run(prefill=[(a, 5), (b, 4)])
    driver.finish([a, b], 4)
    assert a.output == greedy(reference, prompt(80, 5), 4)
