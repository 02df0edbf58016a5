"""What requests leave behind in the metrics, as /metrics shows it, and in the statistics line."""

import asyncio
import logging
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.server.tiny_server import TinyServer, run
from tokasaurus.ipc.messages.to_server import ManagerStats
from tokasaurus.server.prompts import Prompt
from tokasaurus.server.sampling_params import SamplingParams
from tokasaurus.server.stats_reporter import StatsLines, StatsReporter


def stats(**values: Any) -> ManagerStats:
    return ManagerStats(**(dict.fromkeys(ManagerStats.__struct_fields__, 0) | values))


async def scrape(server: TinyServer) -> dict[str, float]:
    """Sample name with its labels -> value."""
    response = await server.http.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    return {
        sample.name + "".join(f",{v}" for v in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_a_batch_counts_once_for_each_pass() -> None:
    async def check(server: TinyServer) -> None:
        server.manager.tokens_per_tick = 3
        await server.complete(prompt=[5, 6, 7], max_tokens=6, n=2)
        seen = await scrape(server)
        assert seen["tokasaurus_batch_size_sequences_count,0"] == 6
        assert seen["tokasaurus_batch_size_sequences_sum,0"] == 12

    run(check)


def test_a_request_is_counted_once() -> None:
    async def check(server: TinyServer) -> None:
        await server.complete(prompt=[5, 6, 7], max_tokens=4, n=2)
        seen = await scrape(server)
        assert seen["tokasaurus_requests_finished_total,length"] == 2
        assert seen["tokasaurus_request_prompt_tokens_sum,0"] == 6
        assert seen["tokasaurus_request_output_tokens_sum,0"] == 8
        assert seen["tokasaurus_time_to_first_token_seconds_count,0"] == 2
        assert seen["tokasaurus_inter_token_latency_seconds_count,0"] == 6
        assert seen["tokasaurus_request_duration_seconds_count,0"] == 2
        assert seen["tokasaurus_batch_size_sequences_count,0"] == 4
        assert seen["tokasaurus_batch_size_sequences_sum,0"] == 8
        assert seen["tokasaurus_requests_in_flight"] == 0
        assert seen["tokasaurus_ready"] == 1

    run(check)


def test_cancelled_and_failed_ones_have_no_duration() -> None:
    async def check(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        params = SamplingParams()
        with server.state.engine.submit([Prompt([5], params)], stream=True):
            assert (await scrape(server))["tokasaurus_requests_in_flight"] == 1
        failing = server.state.engine.submit([Prompt([5], params)], stream=True)
        server.manager.fail_with = "no"
        server.manager.tick()
        await failing.wait()
        seen = await scrape(server)
        assert seen["tokasaurus_requests_finished_total,cancelled"] == 1
        assert seen["tokasaurus_requests_finished_total,error"] == 1
        assert seen["tokasaurus_request_duration_seconds_count,0"] == 0

    run(check)


def test_time_in_the_queue_is_what_the_manager_says() -> None:
    async def check(server: TinyServer) -> None:
        metrics = server.state.engine.metrics
        server.manager.runs_by_itself = False
        with server.state.engine.submit([Prompt([5], SamplingParams())], stream=True) as group:
            [generation] = group.generations
        metrics.note_finished(generation, 5.0, queue_seconds=0.75)
        seen = await scrape(server)
        assert seen["tokasaurus_queue_time_seconds_sum,0"] == 0.75

    run(check)


def test_managers_are_told_apart() -> None:
    async def check(server: TinyServer) -> None:
        for rank in (0, 1):
            server.managers[rank].inbox.send(
                stats(
                    dp_rank=rank,
                    num_running=3 + rank,
                    num_blocks=10,
                    num_blocks_in_use=4,
                    num_prompt_tokens=100,
                    num_cached_tokens=25 * rank,
                    worker_wait_seconds=0.5,
                    hydragen_share=0.5 * rank,
                )
            )
        for _ in range(20):
            await asyncio.sleep(0)
        seen = await scrape(server)
        assert [seen[f"tokasaurus_sequences_running,{r}"] for r in (0, 1)] == [3, 4]
        assert [seen[f"tokasaurus_prefix_cache_hit_ratio,{r}"] for r in (0, 1)] == [0, 0.25]
        assert seen["tokasaurus_kv_usage_ratio,1"] == 0.4
        assert [seen[f"tokasaurus_hydragen_kv_ratio,{r}"] for r in (0, 1)] == [0, 0.5]
        assert seen["tokasaurus_worker_wait_seconds_total,0"] == 0.5

    run(check, num_managers=2)


def test_the_line_is_about_the_interval() -> None:
    async def check(server: TinyServer) -> None:
        lines = StatsLines(server.state.totals.measurements)
        start = lines._since
        assert lines.next(start + 10) is None
        await server.complete(max_tokens=4)
        server.manager.inbox.send(stats(num_prompt_tokens=100, num_cached_tokens=50))
        for _ in range(20):
            await asyncio.sleep(0)
        line = lines.next(start + 20)
        assert line is not None
        assert "1 finished" in line
        assert "prompt 10 tok/s" in line
        assert "cached 50%" in line
        assert "TTFT" in line
        assert lines.next(start + 30) is None

    run(check)


def test_the_reporter_logs_and_needs_no_statsd(caplog: pytest.LogCaptureFixture) -> None:
    async def check(server: TinyServer) -> None:
        caplog.set_level(logging.INFO, logger="tokasaurus")
        reporter = StatsReporter(server.state.totals, 60.0, None)
        await server.complete(max_tokens=4)
        await reporter.report()
        assert "1 finished" in caplog.text

    run(check)
