"""A real engine's metrics, as Prometheus and statsd get them."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import SMALL
from tests.integration.engine_process import EngineProcess
from tests.metric_tools import PATH, PROMTOOL, STATSD, needs_promtool, needs_statsd

_DEADLINE_SECONDS = 60


@pytest.fixture(scope="module")
def received() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        bound.settimeout(60)
        yield bound


@pytest.fixture(scope="module")
def measured(received: socket.socket) -> Iterator[EngineProcess]:
    address = f"statsd_addr=127.0.0.1:{received.getsockname()[1]}"
    with EngineProcess((*SMALL, "dp_size=2", "stats_interval_seconds=0.5", address)) as process:
        process.wait_until_ready()
        complete(process)
        yield process


def complete(process: EngineProcess) -> None:
    """Eight samples of 16 tokens."""
    body = {"prompt": "Once upon a time " * 20, "max_tokens": 16, "n": 8, "ignore_eos": True}
    response = httpx.post(f"{process.url}/v1/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text


def scrape(process: EngineProcess) -> dict[str, float]:
    text = httpx.get(f"{process.url}/metrics", timeout=60).text
    return {
        sample.name + "".join(f",{v}" for v in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_prometheus(measured: EngineProcess) -> None:
    wait_for(lambda: scrape(measured).get("tokasaurus_output_tokens_total,0", 0) > 0)
    seen = scrape(measured)
    assert seen["tokasaurus_ready"] == 1
    assert seen["tokasaurus_requests_finished_total,length"] >= 8
    for name, least in (
        ("request_output_tokens_sum", 8 * 16),
        ("inter_token_latency_seconds_count", 1),
        ("queue_time_seconds_count", 8),
    ):
        assert sum(seen[f"tokasaurus_{name},{rank}"] for rank in (0, 1)) >= least
    assert seen["tokasaurus_kv_blocks,0"] > 0


@needs_promtool
def test_promtool_finds_nothing(measured: EngineProcess) -> None:
    assert PROMTOOL is not None
    result = subprocess.run(
        [PROMTOOL, "check", "metrics"],
        input=httpx.get(f"{measured.url}/metrics", timeout=60).content,
        capture_output=True,
        timeout=60,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_statsd_packets(measured: EngineProcess, received: socket.socket) -> None:
    lines: set[str] = set()
    wanted = ("tokasaurus.output_tokens_total.dp_rank_", "tokasaurus.ready:1|g")
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while not all(any(line.startswith(start) for line in lines) for start in wanted):
        assert time.monotonic() < deadline, sorted(lines)
        lines |= set(received.recv(65536).decode().split("\n"))


def test_the_log_has_a_line(measured: EngineProcess) -> None:
    complete(measured)
    measured.wait_for_line(r"[1-8] finished, prompt")  # they may end in two intervals


@pytest.mark.slow  # starts a daemon and a second engine
@needs_statsd
def test_a_real_daemon_reads_it(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, socket.socket() as admin:
        probe.bind(("127.0.0.1", 0))
        admin.bind(("127.0.0.1", 0))
        port, admin_port = probe.getsockname()[1], admin.getsockname()[1]
    settings = {"port": port, "address": "127.0.0.1", "mgmt_port": admin_port, "backends": []}
    config = tmp_path / "config.js"
    config.write_text(json.dumps(settings | {"mgmt_address": "127.0.0.1"}))
    assert STATSD is not None
    daemon = subprocess.Popen([STATSD, str(config)], env={**os.environ, "PATH": PATH})
    try:
        options = (*SMALL, "stats_interval_seconds=0.5", f"statsd_addr=127.0.0.1:{port}")
        with EngineProcess(options) as process:
            process.wait_until_ready()
            complete(process)
            wait_for(lambda: "tokasaurus.ready" in ask(admin_port, "gauges"))
            wait_for(lambda: "requests_finished_total.length" in ask(admin_port, "counters"))
        assert "bad_lines_seen: 0" in ask(admin_port, "stats")
    finally:
        daemon.terminate()
        daemon.wait(timeout=60)


def ask(port: int, command: str) -> str:
    """What the daemon's administration interface answers, or "" while it isn't there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(f"{command}\n".encode())
            answer = b""
            while b"END" not in answer:
                answer += connection.recv(65536)
            return answer.decode()
    except ConnectionRefusedError:
        return ""
