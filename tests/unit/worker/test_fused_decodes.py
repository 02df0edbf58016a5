"""Decode steps in one call of the kernels draw what the other path draws, whatever changes."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.unit.worker.conftest import PAGE_SIZE, VOCAB_SIZE
from tests.unit.worker.step_driver import DrivenSequence, StepDriver
from tokasaurus.ipc.messages.to_manager import StepOutput, TokenSampling
from tokasaurus.ipc.messages.to_worker import HydragenGroup
from tokasaurus.worker import fused_decodes, step_sampler
from tokasaurus.worker.fused_decodes import DecodedStep
from tokasaurus.worker.runner import GoesOn
from tokasaurus.worker.torch_runner import TorchRunner

PLAIN = (
    TokenSampling(temperature=0.0),
    TokenSampling(seed=1),
    TokenSampling(temperature=0.7, top_k=5, seed=2),
    TokenSampling(temperature=1.3, top_p=0.8, seed=3),
    TokenSampling(temperature=2.0, min_p=0.05, seed=2**62),
    TokenSampling(temperature=1e30, top_k=1),
    TokenSampling(temperature=1.1, top_k=VOCAB_SIZE + 9, top_p=0.9, min_p=0.01, seed=4),
)
MakeRunner = Callable[..., TorchRunner]


class Counted:
    """A runner that notes which of its steps were one call."""

    def __init__(self, runner: TorchRunner) -> None:
        self._runner = runner
        self.num_blocks = runner.num_blocks
        self.was_fused: list[bool] = []

    def execute(self, step: Any, goes_on: Any) -> Any:
        handle = self._runner.execute(step, goes_on)
        self.was_fused.append(isinstance(handle, DecodedStep))
        return handle


@pytest.fixture(autouse=True)
def _calls_take_the_time_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, a call runs its passes."""
    monkeypatch.setattr(fused_decodes, "_MAX_CALL_SECONDS", 3600.0)


@pytest.fixture(scope="module")
def runners(make_runner: MakeRunner) -> tuple[TorchRunner, TorchRunner]:
    return fusing_and_plain(make_runner)


def fusing_and_plain(make_runner: MakeRunner) -> tuple[TorchRunner, TorchRunner]:
    """One that fuses decode steps, and one over the same kernels that never does."""
    fused, plain = (make_runner(attention_backend="cpu", max_seqs_per_forward=80) for _ in "ab")
    assert fused._decodes is not None
    plain._decodes = None
    return fused, plain


def outcomes(
    runners: tuple[TorchRunner, TorchRunner], play: Callable[[StepDriver], list[DrivenSequence]]
) -> tuple[list[list[DrivenSequence]], list[bool]]:
    """What both runners make of a play, and which steps of the first were one call."""
    results, counted = [], [Counted(runner) for runner in runners]
    for runner in counted:
        driver = StepDriver(runner, PAGE_SIZE)
        sequences = play(driver)
        results.append(sequences)
        for sequence in sequences:
            driver.free(sequence)
        driver.run()
    assert not any(counted[1].was_fused)
    return results, counted[0].was_fused


def prompt(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB_SIZE, length).tolist()


def test_same_tokens(runners: tuple[TorchRunner, TorchRunner]) -> None:
    def play(driver: StepDriver) -> list[DrivenSequence]:
        rows = [driver.add(i, prompt(i, 3 + 5 * i), s) for i, s in enumerate(PLAIN)]
        driver.run(prefill=[(row, len(row.tokens)) for row in rows])
        driver.finish(rows, 20)
        return rows

    results, was_fused = outcomes(runners, play)
    assert [s.tokens for s in results[0]] == [s.tokens for s in results[1]]
    assert was_fused[1:-1] == [True] * 19


def test_logits_in_parts(make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    def play(driver: StepDriver) -> list[DrivenSequence]:
        rows = [driver.add(i, prompt(i, 4), s) for i, s in enumerate(PLAIN)]
        driver.run(prefill=[(row, 4) for row in rows])
        driver.finish(rows, 5)
        return rows

    monkeypatch.setattr(step_sampler, "_MAX_LOGITS_BYTES", 4 * VOCAB_SIZE * 3)
    results, was_fused = outcomes(fusing_and_plain(make_runner), play)
    assert [s.tokens for s in results[0]] == [s.tokens for s in results[1]]
    assert was_fused[1:-1] == [True] * 4


def test_slots_come_and_go(runners: tuple[TorchRunner, TorchRunner]) -> None:
    """New slots beyond the table's room, mixed steps, another order, slots taken over."""

    def play(driver: StepDriver) -> list[DrivenSequence]:
        a, b = driver.add(0, prompt(1, 9), PLAIN[1]), driver.add(1, prompt(2, 2), PLAIN[2])
        driver.run(prefill=[(a, 9), (b, 2)])
        driver.run(decode=[a, b])
        c = driver.add(70, prompt(3, 5), PLAIN[3])
        driver.run(prefill=[(c, 5)], decode=[b, a])
        driver.run(decode=[c, a, b])
        driver.free(a)
        driver.run(decode=[c, b])
        d = driver.add(0, prompt(4, 12), PLAIN[4])
        driver.run(prefill=[(d, 4)], decode=[c, b])
        driver.run(decode=[c])
        driver.run(prefill=[(d, 8)])
        driver.run(decode=[d, c, b])
        driver.run(decode=[d, c, b])
        return [b, c, d]

    results, was_fused = outcomes(runners, play)
    assert [s.tokens for s in results[0]] == [s.tokens for s in results[1]]
    assert was_fused == [False, True, False, True, True, False, True, False, True, True, False]


def test_repeated_passes_draw_the_same_tokens(runners: tuple[TorchRunner, TorchRunner]) -> None:
    """In between, slots come and go, and another lease ends early."""
    num_passes: list[int] = []

    def play(driver: StepDriver) -> list[DrivenSequence]:
        def lease(rows: list[DrivenSequence], most: int, num_allowed: int) -> None:
            """The plain runner takes as many steps as the other one passes."""
            allowed = iter(range(num_allowed - 1))
            output = driver.run(
                decode=rows,
                max_passes=most,
                goes_on=GoesOn(lambda: next(allowed, None) is not None),
            )
            num_passes.append(len(np.atleast_2d(output.token_ids)))
            for _ in range(min(most, num_allowed) - num_passes[-1]):
                driver.run(decode=rows)

        rows = [driver.add(i, prompt(i, 3 + i), s) for i, s in enumerate(PLAIN)]
        driver.run(prefill=[(row, len(row.tokens)) for row in rows])
        lease(rows, 7, 99)
        lease(rows, 9, 3)
        driver.free(rows[0])
        lease(rows[1:], 5, 99)
        driver.run(decode=rows[1:])
        return rows

    results, _ = outcomes(runners, play)
    assert [s.tokens for s in results[0]] == [s.tokens for s in results[1]]
    assert num_passes == [7, 3, 5, 1, 1, 1]


def test_a_lease_looks_up_when_something_has_come(
    runners: tuple[TorchRunner, TorchRunner],
) -> None:
    """And before it begins. What has come need not end it."""
    readable, writable = os.pipe()
    asked: list[int] = []

    def lease(rows: list[DrivenSequence], answers: list[bool]) -> int:
        def ask() -> bool:
            asked.append(len(rows[0].tokens))
            return answers.pop(0)

        output = driver.run(decode=rows, max_passes=6, goes_on=GoesOn(ask, readable))
        return len(output.token_ids)

    def begin(drive: StepDriver) -> DrivenSequence:
        sequence = drive.add(0, prompt(1, 5), PLAIN[1])
        drive.run(prefill=[(sequence, 5)])
        return sequence

    driver = StepDriver(runners[0], PAGE_SIZE)
    row = begin(driver)
    assert lease([row], [True]) == 6
    os.write(writable, b"x")
    assert lease([row], [True, True, False]) == 2
    assert lease([row], [False, False]) == 1
    assert lease([row], [True] * 6) == 6
    os.read(readable, 1)
    assert lease([row], [False, False]) == 1
    assert len(asked) == 1 + 3 + 2 + 6 + 2
    alone = StepDriver(runners[1], PAGE_SIZE)
    again = begin(alone)
    alone.finish([again], len(row.output))
    assert again.tokens == row.tokens
    for drive, sequence in ((driver, row), (alone, again)):
        drive.free(sequence)
        drive.run()
    os.close(readable)
    os.close(writable)


def test_a_lease_looks_up_when_time_is_up(
    runners: tuple[TorchRunner, TorchRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks after each call, and goes on."""
    monkeypatch.setattr(fused_decodes, "_MAX_CALL_SECONDS", 0.0)
    readable, writable = os.pipe()
    answers = [True] * 6
    driver = StepDriver(runners[0], PAGE_SIZE)
    row = driver.add(0, prompt(1, 5), PLAIN[1])
    driver.run(prefill=[(row, 5)])
    output = driver.run(decode=[row], max_passes=6, goes_on=GoesOn(answers.pop, readable))
    assert output.token_ids.shape == (6, 1)
    assert not answers
    driver.free(row)
    driver.run()
    os.close(readable)
    os.close(writable)


def test_a_stop_token_is_the_last_of_a_lease(runners: tuple[TorchRunner, TorchRunner]) -> None:
    """And until the manager has freed a slot, leases are of one pass."""
    driver = StepDriver(runners[0], PAGE_SIZE)
    first = driver.add(0, prompt(1, 5), PLAIN[3])
    driver.run(prefill=[(first, 5)])
    driver.run(decode=[first], max_passes=20)
    drawn = first.output
    place = next(i for i in range(3, 20) if drawn[i] not in drawn[:i])
    driver.free(first)
    stop = (drawn[place], VOCAB_SIZE + 5)
    again = driver.add(1, prompt(1, 5), PLAIN[3], stop=stop)
    other = driver.add(2, prompt(2, 5), PLAIN[2])
    driver.run(prefill=[(again, 5), (other, 5)])
    driver.run(decode=[again, other], max_passes=20)
    assert again.output == drawn[: place + 1]
    assert driver.run(decode=[other, again], max_passes=20).token_ids.shape == (1, 2)
    driver.free(again)
    assert driver.run(decode=[other], max_passes=6).token_ids.shape == (6, 1)
    driver.free(other)
    driver.run()


def test_hydragen_groups(runners: tuple[TorchRunner, TorchRunner]) -> None:
    def play(driver: StepDriver) -> list[DrivenSequence]:
        common = prompt(5, 4 * PAGE_SIZE)
        first = driver.add(0, common + prompt(6, 2), PLAIN[0])
        driver.run(prefill=[(first, len(first.tokens))])
        shared = first.blocks[:4]
        rows = [
            driver.add(i, common + prompt(7 + i, 3), PLAIN[1], shared_blocks=shared) for i in (1, 2)
        ]
        driver.run(prefill=[(row, 3) for row in rows])
        driver.run(decode=[first, *rows], hydragen=[HydragenGroup(0, 3, 4)])
        driver.finish([first, *rows], 7)
        return [first]

    results, was_fused = outcomes(runners, play)
    assert [s.tokens for s in results[0]] == [s.tokens for s in results[1]]
    assert was_fused[2:-1] == [True] * 6


@pytest.mark.parametrize(
    "special",
    [
        {"num_top_logprobs": 2},
        {"presence_penalty": 1.0},
        {"bias_ids": (3,), "bias_values": (4.0,)},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_rows_that_ask_for_more(
    runners: tuple[TorchRunner, TorchRunner], special: dict[str, Any]
) -> None:
    """They take all of their steps along, and only those."""

    def play(driver: StepDriver) -> list[DrivenSequence]:
        a = driver.add(0, prompt(1, 4), PLAIN[1])
        b = driver.add(1, prompt(2, 4), TokenSampling(seed=5, **special))
        driver.run(prefill=[(a, 4), (b, 4)])
        driver.run(decode=[a, b])
        driver.run(decode=[a])
        driver.run(decode=[b, a])
        driver.free(b)
        driver.run(decode=[a])
        return [a]

    results, was_fused = outcomes(runners, play)
    assert [s.tokens for s in results[0]] == [s.tokens for s in results[1]]
    assert was_fused[1:-1] == [False, True, False, True]


def test_bans_until_min_tokens(runners: tuple[TorchRunner, TorchRunner]) -> None:
    def play(driver: StepDriver) -> list[DrivenSequence]:
        sampling = TokenSampling(
            temperature=0.0, min_tokens=3, banned_until_min_tokens=tuple(range(VOCAB_SIZE - 2))
        )
        a = driver.add(0, prompt(1, 4), sampling)
        driver.run(prefill=[(a, 4)])
        driver.finish([a], 6)
        return [a]

    results, was_fused = outcomes(runners, play)
    assert results[0][0].tokens == results[1][0].tokens
    assert min(results[0][0].output[:3]) >= VOCAB_SIZE - 2
    assert was_fused[1:-1] == [False, False, True, True, True]


def test_rows_with_a_nan(make_runner: MakeRunner) -> None:
    runner = make_runner(attention_backend="cpu")
    driver = StepDriver(runner, PAGE_SIZE)
    a, b = driver.add(0, prompt(1, 5), PLAIN[0]), driver.add(1, prompt(2, 5), PLAIN[1])
    driver.run(prefill=[(a, 5), (b, 5)])
    for cache in runner._backend.caches():  # type: ignore[attr-defined]
        blocks = cache.view(runner.num_blocks, -1)
        blocks[b.blocks] = float("nan")
    output: StepOutput = driver.run(decode=[a, b], max_passes=4)
    assert output.token_ids.tolist() == [[a.tokens[-1], -1]]
    assert a.tokens[-1] >= 0
    assert driver.run(decode=[a, b]).token_ids[1] == -1
