"""Leases: several decode passes in one step, wherever nobody waits for single tokens."""

import numpy as np
import pytest

from tests.unit.manager.harness import Harness, expected_outputs, make_request
from tokasaurus.ipc.messages.to_manager import RunnerCapabilities
from tokasaurus.ipc.messages.to_worker import StepInput
from tokasaurus.manager.leases import LeasePlanner
from tokasaurus.manager.running_set import RunningSet
from tokasaurus.manager.settings import ManagerSettings


def lending(**settings: int) -> Harness:
    return Harness(num_blocks=200, repeats=True, **settings)


def lease_lens(harness: Harness) -> list[int]:
    return [step.max_passes for step in harness.steps if step.max_passes > 1]


def paused(harness: Harness) -> None:
    """Tick without answers until as many leases as may be are in flight."""
    for _ in range(6):
        harness.tick()
    for _ in range(4):
        harness.tick(0)
    assert harness.engine.num_steps_in_flight == 2
    assert [step.max_passes > 1 for step in harness.steps[-2:]] == [True, True]


def test_a_sequence_runs_in_leases() -> None:
    harness = lending()
    harness.submit(make_request(0, [1, 2, 3], 50))
    harness.run()
    harness.check_tokens()
    harness.check_empty()
    assert max(lease_lens(harness)) == 16
    assert len(harness.steps) <= 8
    assert harness.worker.num_passes == 50, "no pass goes beyond max_tokens"
    assert harness.engine.update_counters().num_steps == 50


@pytest.mark.parametrize(
    "settings", [{"max_decode_repeats": 1}, {"scheduling_steps_ahead": 0}, {"repeats": False}]
)
def test_no_leases(settings: dict[str, int]) -> None:
    harness = Harness(num_blocks=200, **({"repeats": True} | settings))
    harness.submit(make_request(0, [1, 2, 3], 30))
    harness.run()
    harness.check_tokens()
    assert lease_lens(harness) == []


@pytest.mark.parametrize("change", [{"wants_every_token": True}, {"num_top_logprobs": 0}])
def test_one_that_waits_for_tokens_makes_all_steps_single(change: dict[str, int]) -> None:
    harness = lending()
    harness.submit(make_request(0, [1, 2, 3], 60), make_request(1, [4, 5], 20, **change))
    harness.run()
    harness.check_tokens()
    while_both_ran = harness.steps[:20]
    assert all(step.max_passes == 1 for step in while_both_ran)
    assert lease_lens(harness), "what is left of the other runs in leases"


def test_steps_are_single_while_tokens_are_banned() -> None:
    harness = lending()
    harness.submit(make_request(0, [1, 2, 3], 60, stop=(77,), min_tokens=20))
    harness.submit(make_request(1, [4, 5], 60, min_tokens=40))
    harness.run()
    harness.check_tokens()
    assert all(step.max_passes == 1 for step in harness.steps[:20])
    assert any(step.max_passes > 1 for step in harness.steps[20:23])


def test_a_stop_token_ends_a_lease() -> None:
    tokens, _ = expected_outputs(make_request(0, [1, 2], 60), 50)
    place = next(i for i in range(20, 60) if tokens[i] not in tokens[:i])
    harness = lending()
    request = make_request(0, [1, 2], 60, stop=(tokens[place],))
    harness.submit(request, make_request(1, [3], 60))
    harness.run()
    harness.check_tokens()
    harness.check_empty()
    assert harness.finished[0].stop_token_id == tokens[place]
    assert harness.engine.update_counters().num_steps == harness.worker.num_passes


def test_a_broken_row_keeps_what_it_drew_before() -> None:
    harness = Harness(num_blocks=200, repeats=True, broken_seeds=frozenset({3}))
    alone = Harness(num_blocks=200, broken_seeds=frozenset({3}))
    for one in (harness, alone):
        one.submit(make_request(0, [1, 2], 60, seed=3), make_request(1, [3], 60))
        one.run()
        one.check_tokens()
        one.check_empty()
    assert harness.finished[0].reason == "error"
    assert harness.tokens == alone.tokens


def test_an_arrival_gets_a_step_behind_the_leases() -> None:
    harness = lending()
    harness.submit(make_request(0, [1, 2, 3], 100))
    paused(harness)
    num_steps = len(harness.steps)
    harness.submit(make_request(1, [7, 8], 5))
    harness.tick(0)
    assert len(harness.steps) == num_steps + 1
    assert harness.steps[-1].prefill_slots.size == 1
    harness.submit(make_request(2, [9], 5))
    harness.tick(0)
    assert len(harness.steps) == num_steps + 1, "one step more, and no second one"
    harness.run()
    harness.check_tokens()
    harness.check_empty()


def test_an_arrival_gets_a_step_behind_a_lease_and_a_single_step() -> None:
    harness = lending()
    harness.submit(make_request(0, [1, 2, 3], 100), make_request(1, [4], 20))
    while not lease_lens(harness):
        harness.tick()
    harness.tick(0)
    assert harness.engine.num_steps_in_flight == 2
    assert [step.max_passes for step in harness.steps[-2:]] == [16, 1]
    num_steps = len(harness.steps)
    harness.submit(make_request(2, [7, 8], 5))
    harness.tick(0)
    harness.tick(0)
    assert len(harness.steps) == num_steps + 1
    assert harness.steps[-1].prefill_slots.size == 1
    harness.run()
    harness.check_tokens()
    harness.check_empty()


def test_a_cancelled_row_makes_the_lease_end() -> None:
    harness = lending()
    harness.submit(make_request(0, [1, 2, 3], 100), make_request(1, [4], 100))
    paused(harness)
    num_steps = len(harness.steps)
    harness.cancel(1)
    harness.tick(0)
    assert len(harness.steps) == num_steps + 1
    assert harness.steps[-1].freed_slots.size == 1
    harness.run()
    harness.check_tokens()
    harness.check_empty()


def test_a_row_that_left_by_length_comes_back_when_the_lease_ended_early() -> None:
    harness = lending()
    harness.passes_of_lease = lambda step: min(2, step.max_passes)
    harness.submit(make_request(0, [1, 2, 3], 9), make_request(1, [4], 40))
    harness.run()
    harness.check_tokens()
    harness.check_empty()


def test_leases_take_only_blocks_that_are_there() -> None:
    def preemptions(*, repeats: bool) -> int:
        harness = Harness(num_blocks=31, page_size=2, repeats=repeats)
        harness.submit(*(make_request(i, [i, 1, 2], 18) for i in range(3)))
        harness.run()
        harness.check_tokens()
        harness.check_empty()
        assert bool(lease_lens(harness)) == repeats
        return harness.engine.update_counters().num_preemptions

    assert preemptions(repeats=True) == preemptions(repeats=False) == 0


def planner(num_rows: int, **others: float) -> tuple[LeasePlanner, RunningSet]:
    running = RunningSet(8, 1000, 1000, 4)
    running.decode_slots = np.arange(num_rows)
    running.slots.max_num_tokens[:] = 1000
    settings = ManagerSettings(page_size=4, max_decode_repeats=16, **others)
    return LeasePlanner(settings, RunnerCapabilities(repeats=True), running), running


def test_a_lease_is_short() -> None:
    leases, running = planner(2)
    assert leases.num_passes() == 1, "nothing has been measured"
    leases.observe(2, 4, 0.004)
    assert leases.num_passes() == 16
    leases.observe(2, 1, 0.051)
    assert leases.num_passes() == 9
    leases.observe(2, 1, 0.3)
    assert leases.num_passes() == 1
    leases.observe(2, 1, 0.001)
    running.decode_slots = np.arange(3)
    assert leases.num_passes() == 1, "more rows take longer"


def test_a_lease_takes_a_quarter_of_what_a_silent_worker_has() -> None:
    leases, _ = planner(2, step_timeout_seconds=0.4)
    leases.observe(2, 1, 0.012)
    assert leases.num_passes() == 8


def test_a_lease_ends_with_the_first_row_that_is_full() -> None:
    leases, running = planner(2)
    leases.observe(2, 1, 0.001)
    running.slots.num_drawn[1] = 993
    assert leases.num_passes() == 7


@pytest.mark.parametrize("seed", range(3))
def test_leases_that_end_anywhere(seed: int) -> None:
    rng = np.random.default_rng(seed)
    harness = lending(max_seqs_per_forward=6)

    def passes(step: StepInput) -> int:
        return int(rng.integers(1, step.max_passes + 1))

    harness.passes_of_lease = passes
    for i in range(30):
        harness.submit(
            make_request(i, rng.integers(0, 50, 4).tolist(), int(rng.integers(1, 50)), stop=(7,))
        )
        for _ in range(int(rng.integers(1, 6))):
            harness.tick(int(rng.integers(0, 3)))
    harness.run()
    harness.check_tokens()
    harness.check_empty()
    assert lease_lens(harness)
    assert harness.engine.update_counters().num_steps == harness.worker.num_passes
