"""Limits of workloads follow from what was measured as the arithmetic says."""

import json
from pathlib import Path

import pytest
import torch
from bench_offline import RunResult, shares_of, shortened
from limit_meter import (
    Limit,
    LimitMeter,
    LinearPass,
    Machine,
    Shape,
    limit_of,
    mean_seconds,
    plain_ways,
)
from workloads import WORKLOADS, Workload

SHAPE = Shape(hidden=8, intermediate=16, layers=2, heads=2, kv_heads=1, head_dim=4, vocab=32)


def machine(seconds: float = 2.0, bandwidth: float = 1e30, rate: float = 1e30) -> Machine:
    return Machine(
        pass_seconds=lambda _rows: seconds,
        weight_bytes=10,
        bandwidth=bandwidth,
        attention_rate=rate,
        element_size=2,
    )


def test_shape_is_read_from_a_configuration(tmp_path: Path) -> None:
    config = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 32,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Shape.read(tmp_path) == SHAPE
    assert SHAPE.layer_parameters == 2 * (16 * 8 + 8 * 8 + 32 * 8 + 8 * 16)


def test_linear_layers_alone() -> None:
    workload = Workload(num_seqs=64, num_own=16, num_output_tokens=5)
    limit = limit_of(workload, SHAPE, machine())
    prefill = 1024 / 512 * 2.0 * SHAPE.layer_parameters / SHAPE.parameters
    assert limit.ttft_seconds == pytest.approx(prefill)
    assert limit.prefill_rate == pytest.approx(64 * 16 / prefill)
    assert limit.decode_rate == pytest.approx(64 / 2.0)
    assert limit.output_rate == pytest.approx(64 * 5 / (prefill + 4 * 2.0))


def test_a_single_stream_reads_its_weights_at_best() -> None:
    workload = Workload(num_seqs=1, num_own=1, num_output_tokens=2)
    fast = machine(seconds=2.0, bandwidth=1e9)
    num_kv_bytes = 2 * 2 * 1 * 4 * 2 * 2
    assert limit_of(workload, SHAPE, fast).decode_rate == pytest.approx(1e9 / (10 + num_kv_bytes))


def test_attention_counts_pairs_of_queries_and_keys() -> None:
    prompt = Workload(num_seqs=1, num_own=64, num_output_tokens=1)
    limit = limit_of(prompt, SHAPE, machine(seconds=0.0, rate=1.0))
    assert limit.ttft_seconds == 4 * 2 * 2 * 4 * 64**2 / 2
    shared = Workload(num_seqs=3, num_shared=32, num_own=8, num_output_tokens=1)
    limit = limit_of(shared, SHAPE, machine(seconds=0.0, rate=1.0))
    assert limit.ttft_seconds == 4 * 2 * 2 * 4 * (32**2 / 2 + 3 * 8 * 36)


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_a_meter_measures_what_a_workload_needs(quantization: str) -> None:
    reads = iter(range(10**6))
    meter = LimitMeter(SHAPE, torch.float32, quantization, lambda: float(next(reads)))
    for name in ("W2", "W3", "W4"):
        limit = meter.measure(WORKLOADS[name])
        assert limit.prefill_rate > 0
        assert (limit.decode_rate > 0) == (WORKLOADS[name].num_output_tokens > 1)


def test_a_pass_takes_the_time_of_all_layers() -> None:
    calls = []

    def pack(weight: torch.Tensor):  # type: ignore[no-untyped-def]
        return lambda x: calls.append((x.shape, weight.shape))

    layers = LinearPass(SHAPE, torch.float32, pack)
    layers.with_rows(3)()
    assert len(calls) == 2 * 4 + 1
    assert all(x == (3, weight[1]) for x, weight in calls)
    assert set(plain_ways(torch.bfloat16))


def test_what_is_compared_takes_turns() -> None:
    order: list[str] = []
    costs = {"slow": 5.0, "fast": 2.0}
    now = 0.0

    def work(name: str) -> None:
        nonlocal now
        order.append(name)
        now += costs[name]

    runs = [lambda: work("slow"), lambda: work("fast")]
    assert mean_seconds(runs, lambda: now, 0.0, least_rounds=3) == [5.0, 2.0]
    assert order == ["slow", "fast"] * 4
    order.clear()
    mean_seconds(runs, lambda: now, 15.0, least_rounds=1)
    assert order == ["slow", "fast"] * (1 + 5)


def test_a_pass_takes_as_long_as_passes_take_on_average() -> None:
    now = 0.0
    costs = iter([1.0, 2.0, 2.0, 2.0, 6.0])

    def work() -> None:
        nonlocal now
        now += next(costs)

    assert mean_seconds([work], lambda: now, 0.0, least_rounds=4) == [3.0]


def test_a_share_lies_between_the_limits_around_the_run() -> None:
    result = RunResult(
        seconds=1.0,
        output_tokens_per_second=60.0,
        prefill_tokens_per_second=30.0,
        decode_tokens_per_second=20.0,
        ttft_seconds=1.0,
        worker_wait_share=0.0,
        bubble_share=0.0,
        cpu_seconds=1.0,
    )
    limits = [
        Limit(output_rate=rate, prefill_rate=rate, decode_rate=rate, ttft_seconds=1.0)
        for rate in (100.0, 50.0)
    ]
    assert shares_of(limits, WORKLOADS["W1"], result) == {"output": pytest.approx(0.9)}
    single = {"prefill": pytest.approx(0.45), "decode": pytest.approx(0.3)}
    assert shares_of(limits, WORKLOADS["W2"], result) == single
    assert set(shares_of(limits, WORKLOADS["W4"], result)) == {"prefill"}


def test_a_short_form_keeps_the_number_of_sequences() -> None:
    for workload in WORKLOADS.values():
        assert shortened(workload).num_seqs == workload.num_seqs
        assert shortened(workload).num_output_tokens <= 8
