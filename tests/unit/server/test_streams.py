"""Streams: clients that go away, engines that fail, writes that are joined."""

import json

import numpy as np
import pytest

from tests.unit.server.raw_client import PATHS, RawClient, settle
from tests.unit.server.tiny_server import ANSWER, TinyServer, run
from tokasaurus.ipc.messages.to_server import EngineOutputs, RequestFinished


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("num_ticks", [0, 2])
def test_a_client_that_leaves_cancels(path: str, stream: bool, num_ticks: int) -> None:
    async def check(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        client = RawClient(server, path, stream=stream, n=2)
        await settle()
        for _ in range(num_ticks):
            server.manager.tick()
            await settle()
        assert len(server.manager.running) == 2
        client.leave()
        await client.task
        assert len(server.manager.cancelled) == 2
        await settle()
        assert server.state.engine.num_in_flight == 0

    run(check)


def test_a_client_that_left_before_it_was_served() -> None:
    async def check(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        client = RawClient(server, PATHS[0], stream=True)
        client.leave()
        await client.task
        await settle()
        assert server.state.engine.num_in_flight == 0

    run(check)


def test_a_connection_that_breaks_while_writing_cancels() -> None:
    async def check(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        client = RawClient(server, PATHS[0], stream=True)
        await settle()

        def broken() -> None:
            raise OSError("gone")

        client.on_send = broken
        server.manager.tick()
        with pytest.raises(OSError, match="gone"):
            await client.task
        await settle()
        assert len(server.manager.cancelled) == 1

    run(check)


@pytest.mark.parametrize("path", PATHS)
def test_what_comes_together_leaves_in_one_write(path: str) -> None:
    async def check(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        server.manager.tokens_per_tick = 100
        client = RawClient(server, path, stream=True, n=3, max_tokens=40)
        await settle()
        server.manager.tick()
        await client.task
        whole, end = client.writes
        assert whole.count(b"data: ") == (3 + 1 if path == PATHS[0] else 9 + 1)
        assert whole.endswith(b"data: [DONE]\n\n")
        assert end == b""

    run(check)


@pytest.mark.parametrize("path", PATHS)
def test_failure_in_the_middle_of_a_stream(path: str) -> None:
    async def check(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        client = RawClient(server, path, stream=True)
        await settle()
        server.manager.tick()
        await settle()
        server.manager.fail_with = "The worker died."
        server.manager.tick()
        await client.task
        events = b"".join(client.writes).decode().strip().split("\n\n")
        assert events[-1] == "data: [DONE]"
        error = json.loads(events[-2].removeprefix("data: "))["error"]
        assert error["message"] == "The worker died."
        assert error["type"] == "server_error"

    run(check)


@pytest.mark.parametrize("path", PATHS)
def test_failure_of_a_whole_response(path: str) -> None:
    async def check(server: TinyServer) -> None:
        server.manager.fail_with = "The worker died."
        body = (
            {"messages": [{"role": "user", "content": "Hi"}]} if "chat" in path else {"prompt": "a"}
        )
        error = await server.error(path, body, 500)
        assert error["code"] == "engine_failed"

    run(check)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
def test_when_one_sample_fails_the_others_are_cancelled(path: str, stream: bool) -> None:
    async def check(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        client = RawClient(server, path, stream=stream, n=3)
        await settle()
        [_, failing, _] = list(server.manager.running)
        del server.manager.running[failing]
        finished = RequestFinished(request_id=failing, reason="error", error="no numbers")
        server.manager.inbox.send(
            EngineOutputs(
                dp_rank=0,
                request_ids=np.empty(0, np.int64),
                num_tokens=np.empty(0, np.int32),
                token_ids=np.empty(0, np.int32),
                finished=[finished],
            )
        )
        await client.task
        assert b"no numbers" in b"".join(client.writes)
        assert len(server.manager.cancelled) == 2

    run(check)


def test_shutting_down() -> None:
    async def check(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        client = RawClient(server, PATHS[0], stream=True)
        await settle()
        for path, status in (("/health", 200), ("/ready", 200), ("/ping", 200)):
            assert (await server.http.get(path)).status_code == status
        await server.state.engine.close()
        await client.task
        assert b"shutting down" in b"".join(client.writes)
        for path, status in (("/health", 503), ("/ready", 503), ("/ping", 200)):
            assert (await server.http.get(path)).status_code == status
        error = await server.error(PATHS[0], {"prompt": "a"}, 503)
        assert error["code"] == "server_not_ready"
        server.manager.running.clear()

    run(check)


def test_models() -> None:
    async def check(server: TinyServer) -> None:
        listing = (await server.http.get("/v1/models")).json()
        [model] = listing["data"]
        assert listing["object"] == "list"
        assert (model["id"], model["object"], model["max_model_len"]) == ("tiny", "model", 64)
        assert (await server.http.get("/v1/models/tiny")).json() == model

    run(check)


def test_description_resolves() -> None:
    async def check(server: TinyServer) -> None:
        text = (await server.http.get("/openapi.json")).text
        document = json.loads(text)
        defined = document["components"]["schemas"]
        used = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
        assert used <= set(defined)
        assert {"CompletionRequest", "ChatCompletion", "ErrorResponse", "Usage"} <= set(defined)
        assert "/v1/chat/completions" in document["paths"]

    run(check)


@pytest.mark.parametrize("seed", range(5))
def test_many_streams_with_random_disconnects_leave_nothing_behind(seed: int) -> None:
    import random

    generator = random.Random(seed)

    async def check(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        clients = []
        for _ in range(40):
            path = generator.choice(PATHS)
            stop = generator.choice([None, "fox", "brown"])
            stream, n = generator.random() < 0.7, generator.randint(1, 3)
            clients.append(RawClient(server, path, stream=stream, n=n, stop=stop, max_tokens=30))
        while not all(client.task.done() for client in clients):
            await settle()
            server.manager.tokens_per_tick = generator.randint(1, 4)
            server.manager.tick()
            if generator.random() < 0.5:
                generator.choice(clients).leave()
        await settle()
        assert all(client.task.exception() is None for client in clients)

    run(check)


def test_stream_text() -> None:
    async def check(server: TinyServer) -> None:
        chunks = await server.stream(PATHS[0], {"prompt": "a", "max_tokens": 60})
        assert "".join(c["choices"][0]["text"] for c in chunks) == ANSWER

    run(check)
