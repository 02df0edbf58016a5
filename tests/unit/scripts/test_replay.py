"""Replays: every request ends as the trace says, times add up, and the same trace repeats."""

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from simulation.device import HARDWARE, MODELS, Outputs, SimulatedDevice
from simulation.policies import POLICIES, predict
from simulation.replay import Deployment, Replay
from simulation.report import as_dict, build_report, format_table
from simulation.traces import find_trace
from simulation.workload import STOP_TOKEN, Prompt, text

from tokasaurus.ipc.messages.to_manager import TokenSampling
from tokasaurus.ipc.messages.to_worker import AddedSlot, HydragenGroup, StepInput
from tokasaurus.manager.settings import ManagerSettings

HARDWARE_CPU, MODEL = HARDWARE["cpu"], MODELS["135m"]
NO_INTS = np.empty(0, np.int32)


def deployment(
    *,
    num_replicas: int = 1,
    num_blocks: int = 400,
    steps_ahead: int = 1,
    num_slots: int = 16,
    max_decode_repeats: int = 16,
) -> Deployment:
    return Deployment(
        hardware=HARDWARE_CPU,
        model=MODEL,
        settings=ManagerSettings(
            page_size=16,
            max_tokens_per_forward=256,
            max_seqs_per_forward=num_slots,
            scheduling_steps_ahead=steps_ahead,
            max_decode_repeats=max_decode_repeats,
        ),
        num_replicas=num_replicas,
        num_blocks=num_blocks,
        max_model_len=4096,
    )


def single(num_prompt_tokens: int, output_lens: list[int], max_tokens: int = 50) -> Prompt:
    return Prompt(
        arrival_seconds=1.0,
        prompt_ids=text(num_prompt_tokens, 0, num_prompt_tokens),
        output_lens=np.array(output_lens),
        output_keys=np.arange(len(output_lens), dtype=np.uint32),
        max_tokens=max_tokens,
    )


def replayed(prompts: Iterator[Prompt], where: Deployment, policy: str = "default") -> Replay:
    replay = Replay(where, POLICIES[policy])
    replay.run(prompts)
    for replica in replay.replicas:
        replica.engine.check_invariants()
    return replay


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("steps_ahead", [0, 2])
def test_outputs_have_their_true_lengths(policy: str, steps_ahead: int) -> None:
    lengths = [1, 7, 16, 49, 50, 51, 90]
    prompts = [single(40, lengths), single(33, lengths)]
    where = deployment(steps_ahead=steps_ahead, num_blocks=30)
    replay = replayed(iter(prompts), where, policy)
    expected = 2 * sum(min(length, 50) for length in lengths)
    assert replay.requests.num_output_tokens == expected
    assert not np.isnan(replay.requests.ended).any()


def test_run_ahead_overlaps_nothing_on_the_device() -> None:
    """Alone on the device, a request takes the sum of its steps."""
    replay = replayed(iter([single(100, [20])]), deployment(steps_ahead=0))
    [elapsed] = replay.requests.ended - replay.requests.arrival
    assert elapsed == pytest.approx(replay.replicas[0].busy_seconds)
    [ttft] = replay.requests.first_token - replay.requests.arrival
    assert 0 < ttft < elapsed
    assert replay.requests.gaps.counts.sum() == 19


def test_leases_take_as_long_with_fewer_answers() -> None:
    """Whoever decodes alone gets the same tokens in the same time."""
    leased, single_steps = (
        replayed(iter([single(100, [45])]), deployment(max_decode_repeats=repeats)).result()
        for repeats in (16, 1)
    )
    assert leased.num_answers < leased.num_steps / 5
    assert single_steps.num_answers == single_steps.num_steps
    # The last step of a sequence that stops is followed by one more that was planned ahead.
    assert abs(leased.num_steps - single_steps.num_steps) <= 1
    assert leased.requests.num_output_tokens == single_steps.requests.num_output_tokens == 45
    assert leased.requests.ended == pytest.approx(single_steps.requests.ended)
    assert leased.requests.gaps.counts.sum() == 44


def test_nothing_beside_a_stream_is_leased() -> None:
    prompts = [single(100, [20]), single(90, [40])]
    prompts[0].is_streamed = True
    result = replayed(iter(prompts), deployment()).result()
    assert 20 < result.num_answers < result.num_steps


def test_an_arrival_waits_no_longer_for_leases() -> None:
    """It waits for the pass that runs and for one of the lease behind it."""
    first_tokens = []
    for repeats in (16, 1):
        first, late = single(20, [400], max_tokens=400), single(30, [5])
        late.arrival_seconds = 2.0123
        replay = replayed(iter([first, late]), deployment(max_decode_repeats=repeats))
        first_tokens.append(replay.requests.first_token[1])
    assert first_tokens[0] == pytest.approx(first_tokens[1])


def test_same_trace_same_report() -> None:
    reports = []
    for _ in range(2):
        trace = find_trace("chat", ["requests=30", "max_tokens=200", "max_context=2000"])
        report = as_dict(build_report(replayed(trace(), deployment(num_replicas=2)).result()))
        reports.append({k: v for k, v in report.items() if not k.startswith("cpu")})
    assert reports[0] == reports[1]


def test_follow_ups_find_their_context_cached() -> None:
    words = ["requests=30", "turns=6", "system_tokens=20", "max_tokens=100", "max_context=3000"]
    where = deployment(num_replicas=3, num_blocks=4000)
    report = build_report(replayed(find_trace("chat", words)(), where).result())
    assert report.num_requests > 20
    assert report.num_refused == 0
    assert report.cached_share > 0.6


@pytest.mark.parametrize("trace", ["agents", "documents"])
def test_sequences_that_are_too_long_are_refused_and_counted(trace: str) -> None:
    words = ["tasks=1", "rollouts=2"] if trace == "agents" else ["requests=3"]
    report = build_report(replayed(find_trace(trace, words)(), deployment(num_blocks=20)).result())
    assert report.num_refused == report.num_requests > 0


def test_policies_differ_as_they_should() -> None:
    words = ["prompts=2", "samples=30", "few_shot_tokens=32", "max_tokens=300"]
    where = deployment(num_blocks=120, num_slots=64)
    reports = {
        name: build_report(replayed(find_trace("monkeys", words)(), where, name).result())
        for name in ("reserve", "preempt")
    }
    assert reports["reserve"].num_preemptions == 0
    assert reports["preempt"].num_preemptions > 0
    assert reports["preempt"].kv_use_steady_mean > reports["reserve"].kv_use_steady_mean
    assert reports["reserve"].max_overtaken == 0
    table = format_table(reports)
    assert "reserve" in table
    assert "kv_use_steady_mean" in table


def step(
    decode: list[int], added: list[AddedSlot] | None = None, prefill: tuple[int, int] | None = None
) -> StepInput:
    slot, length = prefill or (0, 0)
    has = [0] if prefill else []
    return StepInput(
        step_id=0,
        freed_slots=NO_INTS,
        added_slots=added or [],
        appended_slots=NO_INTS,
        appended_blocks=NO_INTS,
        prefill_slots=np.array([slot] * len(has), np.int32),
        prefill_lens=np.array([length] * len(has), np.int32),
        prefill_samples=np.array([True] * len(has), bool),
        prefill_ids=np.zeros(length, np.int32),
        decode_slots=np.array(decode, np.int32),
    )


def changed(step: StepInput, **values: Any) -> StepInput:
    return msgspec.structs.replace(step, **values)


def new_device() -> SimulatedDevice:
    outputs = Outputs()
    outputs.add(0, np.array([11, 12], np.uint32), np.array([3, 5]))
    return SimulatedDevice(HARDWARE_CPU, MODEL, outputs, num_slots=4, page_size=16)


def test_device_draws_the_trace_and_stops() -> None:
    device = new_device()
    added = AddedSlot(2, 16, 40, TokenSampling(seed=0))
    drawn = []
    for each in (step([], [added], (2, 24)), step([2]), step([2])):
        device.begin(each)
        drawn.append(device.finish().token_ids)
    assert np.concatenate(drawn).tolist() == [*text(11, 40, 42).tolist(), STOP_TOKEN]


def test_device_repeats_until_a_row_stops() -> None:
    """From then on leases have a single pass each, until a slot is freed."""
    device = new_device()
    for slot in (0, 1):
        device.begin(step([], [AddedSlot(slot, 0, 40, TokenSampling(seed=slot))], (slot, 40)))
        device.finish()
    lease = changed(step([0, 1]), max_passes=5)
    seconds = device.begin(lease)
    assert device.may_repeat
    seconds += device.repeat()
    assert not device.may_repeat
    output = device.finish()
    assert output.execute_seconds == seconds
    assert output.token_ids[:, 0].tolist() == [*text(11, 41, 42).tolist(), STOP_TOKEN]
    assert output.token_ids[:, 1].tolist() == text(12, 41, 43).tolist()
    device.begin(changed(step([1]), max_passes=5))
    assert not device.may_repeat
    device.begin(changed(step([1]), max_passes=5, freed_slots=np.zeros(1, np.int32)))
    assert device.finish().token_ids.tolist() == [STOP_TOKEN]


def test_device_takes_longer_for_more_tokens_and_more_context() -> None:
    def seconds(num_tokens: int, num_cached: int = 0) -> float:
        added = AddedSlot(0, num_cached, 10_000, TokenSampling(seed=0))
        return new_device().begin(step([], [added], (0, num_tokens)))

    weights = MODEL.weight_bytes / HARDWARE_CPU.bytes_per_second
    assert seconds(1) == pytest.approx(HARDWARE_CPU.step_seconds + weights, rel=0.01)
    flops = MODEL.flops_per_token * 1024
    assert seconds(1024) > flops / HARDWARE_CPU.flops_per_second
    assert seconds(1024, num_cached=4096) > seconds(1024)


def test_device_reads_a_shared_prefix_once() -> None:
    def seconds(groups: list[HydragenGroup]) -> float:
        device = new_device()
        for slot in (0, 1):
            added = AddedSlot(slot, 0, 2000, TokenSampling(seed=slot))
            device.begin(step([], [added], (slot, 2000)))
        return device.begin(changed(step([0, 1]), hydragen_groups=groups))

    saved = seconds([]) - seconds([HydragenGroup(0, 2, 100)])
    kv_bytes = MODEL.kv_bytes_per_token * 1600
    assert saved == pytest.approx(kv_bytes / HARDWARE_CPU.bytes_per_second)


def test_what_the_engine_foresees_begins_with_what_is_in_use() -> None:
    where = deployment(num_blocks=200, num_slots=32)
    replay = Replay(where, POLICIES["default"], predict, prediction_steps=10)
    replay.run(find_trace("monkeys", ["prompts=2", "samples=40", "few_shot_tokens=32"])())
    log = replay.replicas[0].log
    assert len(log.predictions) > 5
    for step_id, (steps, blocks) in log.predictions:
        [now] = log.blocks_in_use[log.step_ids == step_id]
        assert (steps[0], blocks[0]) == (0, now)
        assert (np.diff(steps) > 0).all()


def test_counts_the_reads_that_groups_save() -> None:
    """Of 16 samples that share 320 of about 350 tokens, groups save nearly all that can be."""
    replay = replayed(iter([single(330, [120] * 16, max_tokens=130)]), deployment(num_blocks=700))
    report = build_report(replay.result())
    assert 0.5 < report.kv_reads_saved_share <= report.kv_reads_shared_share < 15 / 16
