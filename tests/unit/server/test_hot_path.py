"""Short ways that streams and common requests take change nothing that a client can see."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.server.raw_client import PATHS, RawClient, settle
from tests.unit.server.tiny_server import TinyServer, run
from tokasaurus.server.direct_routes import DirectRoutes
from tokasaurus.server.schemas.chat_completions import ChatChunk, ChatChunkChoice, ChatDelta
from tokasaurus.server.streaming import TextEvents


def chunk(text: str) -> ChatChunk:
    choice = ChatChunkChoice(index=3, delta=ChatDelta(content=text))
    return ChatChunk(id='a"b', created=5, model="m\n", choices=[choice], usage=None)


@given(st.text())
def test_events_that_are_put_together_equal_encoded_ones(text: str) -> None:
    encoded = b"data: " + msgspec.json.encode(chunk(text)) + b"\n\n"
    assert TextEvents(chunk).event(text) == encoded


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}, {"n": 2}])
def test_all_chunks_of_a_stream_have_the_same_fields(path: str, options: dict[str, Any]) -> None:
    async def check(server: TinyServer) -> None:
        body: dict[str, Any] = {"prompt": "Hi"}
        if "chat" in path:
            body = {"messages": [{"role": "user", "content": "Hi"}]}
        chunks = await server.stream(path, body | {"max_tokens": 20} | options)
        assert len(chunks) > 10
        for one in chunks:
            assert list(one) == list(chunks[0])
            assert one["id"] == chunks[0]["id"]
        choices = [choice for one in chunks for choice in one["choices"]]
        assert all(list(choice) == list(choices[0]) for choice in choices)
        assert {choice["index"] for choice in choices} == set(range(options.get("n", 1)))

    run(check)


def test_a_writer_that_fails_fails_its_own_stream_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: TextEvents, text: str) -> bytes:
        raise ZeroDivisionError(text)

    async def check(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        broken = RawClient(server, PATHS[0], stream=True)
        await settle()
        server.manager.tick()
        await settle()
        with monkeypatch.context() as patch:
            patch.setattr(TextEvents, "event", fail)
            server.manager.tick()
            with pytest.raises(ZeroDivisionError):
                await broken.task
        server.manager.runs_by_itself = True
        assert (await server.complete(max_tokens=2))["usage"]["completion_tokens"] == 2

    run(check)


def test_requests_that_go_the_short_way_are_counted_and_answered_as_others_are() -> None:
    async def check(server: TinyServer) -> None:
        short = server.app.outermost
        while not isinstance(short, DirectRoutes):
            short = short._app
        assert {*PATHS, "/v1/responses", "/v1/messages"} <= set(short._routes)
        before = {}
        for is_short in (True, False):
            if not is_short:
                short._routes.clear()
            whole = await server.post(PATHS[0], {"prompt": "The", "max_tokens": 3, "seed": 1})
            refused = await server.post(PATHS[0], {"prompt": "The", "temperature": 9})
            answer = json.loads(whole.text)
            del answer["id"], answer["created"]
            seen = answer, refused.json(), whole.status_code, refused.status_code
            before[is_short] = seen, sorted(whole.headers), sorted(refused.headers)
        assert before[True] == before[False]
        metrics = (await server.http.get("/metrics")).text
        labels = 'method="POST",route="/v1/completions",status="200"'
        assert f"tokasaurus_http_responses_total{{{labels}}} 2.0" in metrics.splitlines()

    run(check)


def test_bugs_are_answered_the_short_way_as_they_are_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise ZeroDivisionError(arguments)

    async def check(server: TinyServer) -> None:
        short = server.app.outermost
        while not isinstance(short, DirectRoutes):
            short = short._app
        seen = []
        for is_short in (True, False):
            if not is_short:
                short._routes.clear()
            with monkeypatch.context() as patch:
                patch.setattr(server.state.engine, "submit", fail)
                failed = await server.post(PATHS[0], {"prompt": "The"})
            assert failed.headers["X-Request-Id"].startswith("req_")
            seen.append((failed.status_code, failed.json(), sorted(failed.headers)))
        assert seen[0] == seen[1]
        assert seen[0][0] == 500
        metrics = (await server.http.get("/metrics")).text
        labels = 'method="POST",route="/v1/completions",status="500"'
        assert f"tokasaurus_http_responses_total{{{labels}}} 2.0" in metrics.splitlines()

    run(check)


def test_other_methods_of_a_short_path() -> None:
    async def check(server: TinyServer) -> None:
        response = await server.http.get(PATHS[0])
        assert response.status_code == 405
        assert "does not take GET" in response.json()["error"]["message"]

    run(check)
