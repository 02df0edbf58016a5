"""Files and batches of a real engine: through OpenAI's client, across a kill, and at full size."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from openai.types import Batch

from tests.integration.conftest import SMALL
from tests.integration.engine_process import EngineProcess

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
ENDED = {"completed", "failed", "expired", "cancelled"}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    state_dir = tmp_path_factory.mktemp("state")
    with EngineProcess((*SMALL, f"state_dir={state_dir}")) as started:
        started.wait_until_ready()
        yield started


def client_of(process: EngineProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{process.url}/v1", api_key="none", timeout=60)


def write_input(path: Path, num_lines: int, url: str = COMPLETIONS, **body: Any) -> Path:
    with path.open("w") as file:
        for index in range(num_lines):
            item = {"custom_id": f"item-{index}", "method": "POST", "url": url, "body": body}
            file.write(json.dumps(item) + "\n")
    return path


def start(client: openai.OpenAI, path: Path, endpoint: Any = COMPLETIONS) -> Batch:
    file = client.files.create(file=path, purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"a": "b"}
    )


def wait(client: openai.OpenAI, batch_id: str, timeout_seconds: float = 120) -> Batch:
    deadline = time.monotonic() + timeout_seconds
    while (batch := client.batches.retrieve(batch_id)).status not in ENDED:
        assert time.monotonic() < deadline, batch
        time.sleep(0.2)
    return batch


def answers_of(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def test_openai_client(process: EngineProcess, tmp_path: Path) -> None:
    with client_of(process) as client:
        messages = [{"role": "user", "content": "Hello"}]
        path = write_input(tmp_path / "in.jsonl", 20, CHAT, messages=messages, max_tokens=4)
        batch = wait(client, start(client, path, CHAT).id)
        assert batch.status == "completed"
        assert batch.request_counts is not None
        assert (batch.request_counts.total, batch.request_counts.completed) == (20, 20)
        answers = answers_of(client, batch.output_file_id)
        assert sorted(a["custom_id"] for a in answers) == sorted(f"item-{i}" for i in range(20))
        assert all(a["response"]["body"]["object"] == "chat.completion" for a in answers)
        assert batch.id in [b.id for b in client.batches.list()]
        names = {file.id: file.purpose for file in client.files.list()}
        assert names[batch.input_file_id] == "batch"
        assert names[str(batch.output_file_id)] == "batch_output"
        assert client.files.delete(batch.input_file_id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(batch.input_file_id)


def test_embeddings(process: EngineProcess, tmp_path: Path) -> None:
    with client_of(process) as client:
        path = write_input(tmp_path / "in.jsonl", 10, "/v1/embeddings", input=["a", "b c"])
        batch = wait(client, start(client, path, "/v1/embeddings").id)
        assert batch.status == "completed"
        answers = answers_of(client, batch.output_file_id)
        assert len(answers) == 10
        for answer in answers:
            assert [d["index"] for d in answer["response"]["body"]["data"]] == [0, 1]


def test_cancelling(process: EngineProcess, tmp_path: Path) -> None:
    with client_of(process) as client:
        path = write_input(
            tmp_path / "in.jsonl", 2000, prompt="Once", max_tokens=500, ignore_eos=True
        )
        batch = start(client, path)
        assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
        assert wait(client, batch.id).status == "cancelled"
        completion = client.completions.create(model=process.model, prompt="Once", max_tokens=2)
        assert completion.usage is not None


def test_synchronous_batch(process: EngineProcess) -> None:
    bodies = [{"prompt": "Once", "max_tokens": 1 + i, "ignore_eos": True} for i in range(5)]
    bodies.append({"prompt": 5.5})
    response = httpx.post(
        f"{process.url}/custom/synchronous-batch-completions", json=bodies, timeout=60
    )
    answers = response.json()
    tokens = [answer["usage"]["completion_tokens"] for answer in answers[:5]]
    assert tokens == [1, 2, 3, 4, 5]
    assert answers[5]["error"]["param"] == "prompt"


def test_a_killed_engine_goes_on_where_it_was(tmp_path: Path) -> None:
    options = (*SMALL, f"state_dir={tmp_path}/state", "max_seqs_per_forward=8")
    path = write_input(tmp_path / "in.jsonl", 200, prompt="Once", max_tokens=32, ignore_eos=True)
    with EngineProcess(options) as first:
        first.wait_until_ready()
        with client_of(first) as client:
            worker = first.children()["worker0.0"]
            worker.suspend()
            batch = start(client, path)
            deadline = time.monotonic() + 120
            while count_of(client, batch.id) < 20:
                assert time.monotonic() < deadline
                worker.resume()
                time.sleep(0.05)
                worker.suspend()  # so that nothing ends between counting and killing
        children = list(first.children().values())
        first.popen.kill()
        for child in children:
            child.kill()
        psutil.wait_procs(children, timeout=30)
    [results] = (tmp_path / "state" / "batches").glob("*.output.jsonl")
    before = results.read_text().split("\n")[:-1]
    assert 20 <= len(before) < 200
    with EngineProcess(options) as second:
        second.wait_until_ready()
        with client_of(second) as client:
            ended = wait(client, batch.id)
            assert ended.status == "completed"
            lines = client.files.content(str(ended.output_file_id)).text.splitlines()
    assert lines[: len(before)] == before
    ids = [json.loads(line)["custom_id"] for line in lines]
    assert sorted(ids) == sorted(f"item-{i}" for i in range(200))


def count_of(client: openai.OpenAI, batch_id: str) -> int:
    counts = client.batches.retrieve(batch_id).request_counts
    return 0 if counts is None else counts.completed


@pytest.mark.slow  # 100,000 requests to a model on a CPU
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_lines_in_bounded_memory(tmp_path: Path) -> None:
    num_lines = 100_000
    options = (*SMALL, f"state_dir={tmp_path}/state")
    small = write_input(tmp_path / "small.jsonl", 5000, prompt=[5, 6, 7], max_tokens=1)
    large = write_input(
        tmp_path / "large.jsonl", num_lines, prompt=[5, 6, 7], max_tokens=1, user="x" * 2000
    )
    with EngineProcess(options) as process:
        process.wait_until_ready()
        server = process.children()["server0"]
        with client_of(process) as client:
            wait(client, start(client, small).id, 600)
            before = server.memory_info().rss
            batch = start(client, large)
            most = 0
            while (found := client.batches.retrieve(batch.id)).status not in ENDED:
                most = max(most, server.memory_info().rss)
                time.sleep(0.5)
            assert found.status == "completed"
            assert found.request_counts is not None
            assert found.request_counts.completed == num_lines
            content = client.files.content(str(found.output_file_id)).read()
    assert len({json.loads(line)["custom_id"] for line in content.splitlines()}) == num_lines
    assert most - before < large.stat().st_size / 2  # neither the input nor the output is held
