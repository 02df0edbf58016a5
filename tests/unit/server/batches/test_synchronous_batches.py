"""POST /custom/synchronous-batch-completions: a list in, a list out, in order."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.server.batches.batch_client import settings
from tests.unit.server.raw_client import RawClient
from tests.unit.server.tiny_server import ANSWER, TinyServer, run

PATH = "/custom/synchronous-batch-completions"
HI = [{"role": "user", "content": "Hi"}]


def test_answers_are_in_order_and_of_their_kind() -> None:
    async def check(server: TinyServer) -> None:
        bodies: list[dict[str, Any]] = [{"prompt": "a", "max_tokens": 1 + i} for i in range(9)]
        bodies += [{"messages": HI}, {"prompt": "a", "temperature": 9}, {"messages": 5}, {}]
        response = await server.post(PATH, bodies)
        assert response.status_code == 200
        answers = response.json()
        assert len(answers) == len(bodies)
        for index in range(9):
            assert answers[index]["usage"]["completion_tokens"] == 1 + index
        assert answers[9]["choices"][0]["message"]["content"] == ANSWER
        params = [answer["error"]["param"] for answer in answers[10:]]
        assert params == ["temperature", "messages", "prompt"]

    run(check)


def test_nothing_in_nothing_out() -> None:
    async def check(server: TinyServer) -> None:
        assert (await server.post(PATH, [])).json() == []

    run(check)


@pytest.mark.parametrize(
    "body",
    ["", "{", "{}", "5", "[5]", "[[]]", b'[{"prompt": "\xff"', "[" * 100_000, "[" + "{}," * 20_000],
)
def test_bodies_that_are_no_list(body: str | bytes) -> None:
    async def check(server: TinyServer) -> None:
        error = await server.error(PATH, body)
        assert error["type"] == "invalid_request_error"
        too_many = await server.error(PATH, json.dumps([{}] * 17_000))
        assert "at most 16384" in too_many["message"]

    run(check)


def test_values_no_number_can_hold_are_the_items_problem() -> None:
    async def check(server: TinyServer) -> None:
        response = await server.post(PATH, f'[{{"prompt": [{"9" * 5000}]}}, {{"prompt": "a"}}]')
        bad, good = response.json()
        assert bad["error"]["type"] == "invalid_request_error"
        assert good["choices"]

    run(check)


def test_few_run_at_a_time(tmp_path: Path) -> None:
    async def check(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        work = asyncio.create_task(server.post(PATH, [{"prompt": "a", "max_tokens": 1}] * 10))
        while not work.done():
            assert len(server.manager.running) <= 4
            server.manager.tick()
            await asyncio.sleep(0)
        assert len((await work).json()) == 10

    run(check, batch_settings=settings(tmp_path, max_in_flight=4))


def test_a_client_that_leaves_takes_everything_along() -> None:
    async def check(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        client = RawClient(server, PATH)
        client._body = client._body | {"body": json.dumps([{"prompt": "a"}] * 5).encode()}
        for _ in range(12_000):
            if len(server.manager.running) == 5:
                break
            await asyncio.sleep(0.005)
        client.leave()
        await client.task
        assert len(server.manager.cancelled) == 5

    run(check)
