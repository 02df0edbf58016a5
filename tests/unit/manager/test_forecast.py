"""Extending a forecast by candidates gives what building it anew gives."""

import numpy as np
import pytest

from tests.unit.manager.harness import Harness, make_request
from tokasaurus.manager.block_usage import usage_at
from tokasaurus.manager.forecast import Forecast
from tokasaurus.manager.running_set import PrefixMatch, RunningSet
from tokasaurus.manager.sequence import Sequence
from tokasaurus.manager.settings import ManagerSettings
from tokasaurus.manager.simulated_admission import SimulateFuture
from tokasaurus.manager.stopping_predictor import StoppingPredictor

_TIMES = np.arange(120)


class _CheckedPolicy(SimulateFuture):
    """Compares the two after every admission."""

    num_compared = 0
    num_refused = 0
    running: RunningSet

    def admits(self, running: RunningSet, matches: list[PrefixMatch]) -> bool:
        self.running = running
        is_admitted = super().admits(running, matches)
        self.num_refused += not is_admitted
        self._compare_unless(is_admitted)
        return is_admitted

    def settle(self, sequences: list[Sequence]) -> None:
        super().settle(sequences)
        self._compare_unless(False)

    def _compare_unless(self, is_pending: bool) -> None:
        if self._forecast is None or is_pending:
            return
        page_size = self.running.page_size
        extended = usage_at(self._forecast.loads, _TIMES, page_size)
        anew = usage_at(self.forecast(self.running).loads, _TIMES, page_size)
        assert extended.tolist() == anew.tolist()
        self.num_compared += 1


@pytest.mark.parametrize("seed", range(6))
def test_extended_forecast_equals_a_new_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    page_size = int(rng.integers(1, 8))
    settings = ManagerSettings(page_size=page_size, max_tokens_per_forward=40)
    policy = _CheckedPolicy(settings, StoppingPredictor())
    harness = Harness(
        num_blocks=int(300 / page_size),
        page_size=page_size,
        policy=policy,
        max_tokens_per_forward=40,
        max_seqs_per_forward=30,
    )
    prefixes = [rng.integers(0, 50, 20).tolist() for _ in range(16)]
    for index in range(150):
        prefix = prefixes[index // 12 + int(rng.integers(3))]  # new ones come up within a batch
        prompt = [*prefix, *rng.integers(0, 50, rng.integers(0, 9)).tolist()]
        stop = tuple(rng.integers(0, 50, 2).tolist())
        harness.submit(make_request(index, prompt, int(rng.integers(1, 60)), stop=stop))
        if rng.random() < 0.2:
            harness.tick()
    harness.run()
    harness.check_tokens()
    harness.check_empty()
    assert policy.num_compared > 50
    assert policy.num_refused > 10


def test_a_refused_candidate_changes_nothing() -> None:
    harness = Harness(num_blocks=40, page_size=4)
    harness.submit(*(make_request(i, list(range(20)), 20) for i in range(3)))
    harness.tick()
    policy = harness.engine.policy
    assert isinstance(policy, SimulateFuture)
    running = harness.engine.running
    forecast = policy.forecast(running)
    before = usage_at(forecast.loads, _TIMES, 4)
    match = running.match(Sequence.from_request(make_request(9, [*range(20), 7, 8], 90), arrival=9))
    assert not forecast.accepts([match], forecast.peak)
    assert usage_at(forecast.loads, _TIMES, 4).tolist() == before.tolist()
    assert forecast.accepts([match], 1000)
    after = usage_at(forecast.loads, _TIMES, 4)
    assert (after >= before).all()
    assert after[0] == before[0] + 1  # 6 blocks, of which 5 are shared


def test_headroom_follows_preemptions() -> None:
    """Every preemption holds more back, up to a limit; ends without any give it free again."""
    policy = SimulateFuture(ManagerSettings(), StoppingPredictor())
    sequence = Sequence.from_request(make_request(0, [1, 2], 9), arrival=0)
    policy.observe(sequence, 5, is_stop=True)
    assert policy.headroom == 0.0
    sequence.num_preemptions = 1
    policy.observe(sequence, 5, is_stop=True)
    assert 0 < policy.headroom <= 0.1
    sequence.num_preemptions = 0
    for _ in range(300):
        policy.observe(sequence, 5, is_stop=True)
    assert policy.headroom == 0.0


def test_paced_prefills_are_foreseen_at_their_pace() -> None:
    """What is prefilled slowly also ends late: the forecast knows by the pacer's rate."""
    starts = []
    for greedy_prefill in (True, False):
        harness = Harness(
            num_blocks=400,
            page_size=4,
            greedy_prefill=greedy_prefill,
            max_tokens_per_forward=400,
            max_seqs_per_forward=40,
        )
        harness.submit(*(make_request(i, [i] * 8, 50) for i in range(20)))
        for _ in range(70):
            harness.tick()
        harness.submit(*(make_request(100 + i, [i] * 8, 50) for i in range(20)))
        for _ in range(4):
            harness.tick()
        harness.submit(*(make_request(200 + i, [50 + i] * 40, 50) for i in range(10)))
        harness.tick()
        policy = harness.engine.policy
        assert isinstance(policy, SimulateFuture)
        starts.append(int(policy.forecast(harness.engine.running).loads.starts.max()))
        harness.run()
        harness.check_tokens()
    greedy, paced = starts
    assert greedy <= 1
    assert paced > 5


def test_a_sequence_admitted_alone_is_foreseen() -> None:
    """Also where a forecast of nobody has refused it together with others."""
    harness = Harness(num_blocks=20, page_size=4)
    policy, running = harness.engine.policy, harness.engine.running
    assert isinstance(policy, SimulateFuture)
    sequences = [Sequence.from_request(make_request(i, [i] * 8, 60), arrival=i) for i in range(2)]
    matches = [running.match(sequence) for sequence in sequences]
    policy.begin()
    assert not policy.admits(running, matches)
    assert policy.admits(running, matches[:1])
    running.onboard(matches[:1])
    policy.settle(sequences[:1])
    assert not policy.admits(running, [running.match(sequences[1])])


def lent(num_outputs: int, *, known: int = 0, num_passes: int = 16) -> Harness:
    """A harness with two leases in flight, of a request of so many outputs.

    Others of its kind have all ended after `known` outputs. Leases end after `num_passes`.
    """
    harness = Harness(num_blocks=400, page_size=4, repeats=True)
    harness.passes_of_lease = lambda step: min(num_passes, step.max_passes)
    policy = harness.engine.policy
    assert isinstance(policy, SimulateFuture)
    request = make_request(0, [0, 1, 2], num_outputs, stop=(77,))
    kind = Sequence.from_request(request, arrival=0).kind
    for prompt in range(2000 if known else 0):
        policy._predictor.observe(kind, prompt, known, is_stop=True)
    harness.submit(request)
    while not any(step.max_passes > 1 for step in harness.steps):
        harness.tick()
    harness.tick(0)
    assert [step.max_passes > 1 for step in harness.steps[-2:]] == [True, True]
    assert harness.engine.num_steps_in_flight == 2
    return harness


def forecast_of(harness: Harness) -> Forecast:
    policy = harness.engine.policy
    assert isinstance(policy, SimulateFuture)
    return policy.forecast(harness.engine.running)


def in_flight_of(harness: Harness) -> int:
    return harness.engine.running.slots.num_tokens_in_flight(0)


def test_what_is_lent_is_still_to_run() -> None:
    """Who comes now ends the leases: a sequence lives as long from its known tokens on as it would
    without them, and its blocks grow when it has filled those that it has."""
    harness = lent(100)
    slots = harness.engine.running.slots
    num_in_flight = in_flight_of(harness)
    assert num_in_flight > 25
    loads = forecast_of(harness).loads
    num_known = int(slots.num_known[0]) - 3
    assert loads.ends.tolist() == [100 - num_known]
    assert loads.starts.tolist() == [
        num_in_flight - 1 + int(loads.num_tokens[0]) - slots.num_scheduled[0]
    ]
    num_at_end = int(loads.num_tokens[0] + loads.ends[0] - loads.starts[0])
    assert num_at_end == 3 + 100 - 1 + 1, "all its tokens, and the step that blocks come back after"


def test_a_row_that_rests_holds_its_blocks_until_its_leases_have_run() -> None:
    harness = lent(28)
    running = harness.engine.running
    assert running.num_waiting_for_tokens == 1
    num_in_flight = in_flight_of(harness)
    assert num_in_flight > 20
    forecast = forecast_of(harness)
    assert forecast.loads.ends.tolist() == [num_in_flight]
    assert usage_at(forecast.loads, _TIMES, 4)[num_in_flight] == running.blocks.num_in_use


def test_blocks_left_by_a_lease_are_not_more_than_a_sequence_can_fill() -> None:
    harness = lent(60, num_passes=1)
    harness.submit(make_request(1, [1] * 4, 90, wants_every_token=True))
    num_left = []
    while len(harness.finished) < 1:
        harness.tick()
        running = harness.engine.running
        if running.slots.is_decoding[0]:
            loads = forecast_of(harness).loads
            num_at_end = int((loads.num_tokens + loads.ends - loads.starts)[0])
            num_left.append(int(running.slots.capacity[0] - running.slots.num_scheduled[0]))
            assert num_at_end <= 63 + 1
    assert max(num_left) > 8
    harness.run()


def test_tokens_in_flight_are_not_survived() -> None:
    """All of a kind have ended after 20 outputs: one of which 5 are known is not beyond that."""
    harness = lent(200, known=20)
    known = int(harness.engine.running.slots.num_known[0]) - 3
    assert known < 20 < known + in_flight_of(harness)
    loads = forecast_of(harness).loads
    assert loads.ends.tolist() == [in_flight_of(harness) + 1]
