"""One engine with two server processes on one port; every connection may reach either."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import SMALL
from tests.integration.engine_process import EngineProcess

NUM_CONNECTIONS = 32
"""All of them reach the same process once in 2**31 times."""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    folder = tmp_path_factory.mktemp("state")
    options = ("server_workers=2", "request_log=T", "stats_interval_seconds=1")
    with EngineProcess((*SMALL, *options, f"state_dir={folder}")) as process:
        process.wait_until_ready()
        yield process
        os.kill(process.children()["server1"].pid, signal.SIGKILL)
        assert process.wait() == 1
        assert "server1 was killed by signal SIGKILL" in process.output


def ask(both: EngineProcess, method: str, path: str, **options: Any) -> httpx.Response:
    """Over a connection of its own."""
    response = httpx.request(method, f"{both.url}{path}", timeout=60, **options)
    assert response.status_code == 200, response.text
    return response


def complete(both: EngineProcess) -> None:
    body = {"prompt": "Once", "max_tokens": 3, "ignore_eos": True}
    assert ask(both, "POST", "/v1/completions", json=body).json()["usage"]["total_tokens"] > 3


def num_finished(both: EngineProcess) -> float:
    [line] = [
        line
        for line in ask(both, "GET", "/metrics").text.splitlines()
        if line.startswith('tokasaurus_requests_finished_total{finish_reason="length"}')
    ]
    return float(line.split()[-1])


def test_both_serve_and_metrics_are_totals(both: EngineProcess) -> None:
    assert {"server0", "server1"} <= set(both.children())
    complete(both)
    before = num_finished(both)
    for _ in range(NUM_CONNECTIONS):
        complete(both)
    assert {num_finished(both) for _ in range(6)} == {before + NUM_CONNECTIONS}
    deadline = time.monotonic() + 60
    while not all(has_served(both, name) for name in ("server0", "server1")):
        assert time.monotonic() < deadline, both.output
        time.sleep(0.05)


def has_served(both: EngineProcess, name: str) -> bool:
    """Its log says so; what it has written arrives later than its answer."""
    return any(name in line and '"path":"/v1/completions"' in line for line in both.lines)


def test_streams(both: EngineProcess) -> None:
    body = {"prompt": "Once", "max_tokens": 5, "temperature": 0, "ignore_eos": True}
    whole = ask(both, "POST", "/v1/completions", json=body).json()["choices"][0]["text"]
    for _ in range(4):
        lines = ask(both, "POST", "/v1/completions", json=body | {"stream": True}).text.split("\n")
        events = [line.removeprefix("data: ") for line in lines if line.startswith("data: {")]
        assert "".join(json.loads(event)["choices"][0]["text"] for event in events) == whole


def test_what_one_stores_all_find(both: EngineProcess) -> None:
    for _ in range(4):
        created = ask(both, "POST", "/v1/responses", json={"input": "Hi", "max_output_tokens": 3})
        response_id = created.json()["id"]
        for _ in range(4):
            assert ask(both, "GET", f"/v1/responses/{response_id}").json() == created.json()


def test_batches(both: EngineProcess, tmp_path: Path) -> None:
    item = {"custom_id": "a", "method": "POST", "url": "/v1/completions"}
    line = json.dumps(item | {"body": {"prompt": "Once", "max_tokens": 3}})
    batches = []
    for _ in range(4):
        upload = {"files": {"file": ("in.jsonl", line)}, "data": {"purpose": "batch"}}
        file_id = ask(both, "POST", "/v1/files", **upload).json()["id"]
        wanted = {"input_file_id": file_id, "completion_window": "1h"}
        batch = ask(
            both, "POST", "/v1/batches", json=wanted | {"endpoint": "/v1/completions"}
        ).json()
        batches.append(batch["id"])
    deadline = time.monotonic() + 60
    for batch_id in batches:
        while (batch := ask(both, "GET", f"/v1/batches/{batch_id}").json())[
            "status"
        ] != "completed":
            assert time.monotonic() < deadline, batch
            time.sleep(0.05)
        answers = ask(both, "GET", f"/v1/files/{batch['output_file_id']}/content").text
        assert json.loads(answers)["response"]["status_code"] == 200
    listed = ask(both, "GET", "/v1/batches?limit=4").json()["data"]
    assert {batch["id"] for batch in listed} == set(batches)


def test_one_reports(both: EngineProcess) -> None:
    complete(both)
    assert "server0" in both.wait_for_line("finished, prompt")
    assert not any("server1" in line for line in both.lines if "finished, prompt" in line)
