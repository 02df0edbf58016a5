"""Whatever a client sends, it gets an OpenAI-shaped answer, and nothing reaches a manager."""

import json
from typing import Any

import pytest

from tests.unit.server.tiny_server import TinyServer, run
from tokasaurus.server.prompts import Prompt
from tokasaurus.server.sampling_params import SamplingParams

PATH = "/v1/completions"
CHAT = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": ["a", [1]]}, "prompt"),
        ({"prompt": [[1], 2]}, "prompt"),
        ({"prompt": [[1, "a"]]}, "prompt"),
        ({"prompt": [[1.0]]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [[True]]}, "prompt"),
        ({"prompt": [[[1]]]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [420]}, "prompt"),
        ({"prompt": [2**31]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": [5] * 64}, "prompt"),
        ({"prompt": "x " * 500}, "prompt"),
        ({"prompt": ["a"] * 5000}, "prompt"),
        ({"prompt": ["a"] * 100, "n": 128}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": -1}, "n"),
        ({"n": 4097}, "n"),
        ({"n": True}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": "1"}, "n"),
        ({"n": 10**30}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**12}, "max_tokens"),
        ({"max_tokens": 64}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"min_tokens": 64}, "min_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": 1}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
        ({"stop": [str(i) for i in range(65)]}, "stop"),
        ({"stop": "x" * 70_000}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": [420]}, "stop_token_ids"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids[0]"),
        ({"stop_token_ids": list(range(1025))}, "stop_token_ids"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"echo": "yes"}, "echo"),
        ({"priority": 2**40}, "priority"),
        ({"cache_salt": "x" * 2000}, "cache_salt"),
        ({"model": 5}, "model"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stream": True, "stream_options": {"foo": 1}}, "stream_options.foo"),
        ({"stream": True, "stream_options": 5}, "stream_options"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": -2.5}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {"420": 1}}, "logit_bias"),
        ({"logit_bias": {"5": "1"}}, "logit_bias[5]"),
        ({"bad_words": [" "]}, "bad_words"),
        ({"bad_words": ["x"] * 257}, "bad_words"),
        ({"bad_words": ["x" * 65]}, "bad_words"),
        ({"allowed_token_ids": [420]}, "allowed_token_ids"),
        ({"allowed_token_ids": [89], "bad_words": ["x"]}, "allowed_token_ids"),
        ({"allowed_token_ids": [1], "min_tokens": 2}, "allowed_token_ids"),
        ({"suffix": "x"}, "suffix"),
        ({"guided_json": {"not": {}}}, "guided_json"),
        ({"temprature": 1}, "temprature"),
        ({"x" * 500: 1}, "x" * 64),
    ],
)
def test_refused_by_name(body: dict[str, Any], param: str) -> None:
    async def check(server: TinyServer) -> None:
        error = await server.error(PATH, {"prompt": "The"} | body)
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param
        assert len(error["message"]) < 500
        assert not server.manager.requests
        if "stream" not in body and "stream_options" not in body:
            assert await server.error(PATH, {"prompt": "The", "stream": True} | body) == error

    run(check)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ("", None),
        ("{", None),
        ("[]", None),
        ('"x"', None),
        ("null", None),
        ("{}", "prompt"),
        (b'{"prompt": "\xff"}', None),
        ('{"prompt": "\\ud800"}', None),
        ('{"prompt": "a", "temperature": NaN}', "temperature"),
        ('{"prompt": "a", "temperature": Infinity}', "temperature"),
        ('{"prompt": "a", "top_p": 1e999}', "top_p"),
        ('{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}", None),
        ('{"prompt": [' + "9" * 5000 + "]}", None),
    ],
)
def test_bodies_that_are_no_request(body: str | bytes, param: str | None) -> None:
    async def check(server: TinyServer) -> None:
        for path in (PATH, "/v1/chat/completions"):
            error = await server.error(path, body)
            if path == PATH:
                assert error["param"] == param
        assert not server.manager.requests

    run(check)


def test_errors_show_both_lengths() -> None:
    async def check(server: TinyServer) -> None:
        for body, numbers in (
            ({"prompt": [5] * 100}, ["64", "100"]),
            ({"prompt": [5] * 60, "max_tokens": 10}, ["64", "70", "60", "10"]),
        ):
            error = await server.error(PATH, body)
            assert error["code"] == "context_length_exceeded"
            assert all(number in error["message"] for number in numbers)

    run(check)


def test_defaults_never_exceed_the_context() -> None:
    async def check(server: TinyServer) -> None:
        response = await server.complete(prompt=[5] * 60, max_tokens=None)
        assert response["usage"]["completion_tokens"] == 4

    run(check)


def test_unknown_model_path_and_method() -> None:
    async def check(server: TinyServer) -> None:
        error = await server.error(PATH, {"prompt": "a", "model": "gpt-5"}, 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        await server.error("/v1/nothing", {}, 404)
        await server.error("/v1/models", {}, 405)
        response = await server.http.get("/v1/models/other")
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"
        response = await server.http.get(PATH)
        assert response.status_code == 405
        assert response.headers["allow"] == "POST"

    run(check)


def test_body_size() -> None:
    async def check(server: TinyServer) -> None:
        error = await server.error(PATH, {"prompt": "x" * 3000}, 413)
        assert "2000 bytes" in error["message"]
        await server.error(PATH, {"prompt": "x" * 30_000}, 413)

    run(check, max_body_bytes=2000)


def test_content_type_does_not_matter() -> None:
    async def check(server: TinyServer) -> None:
        response = await server.post(
            PATH, '{"prompt": "The"}', headers={"content-type": "text/plain"}
        )
        assert response.status_code == 200

    run(check)


def test_full_queue() -> None:
    async def check(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        with server.state.engine.submit([Prompt([5], SamplingParams(n=3))], stream=False):
            response = await server.post(PATH, {"prompt": "The", "n": 2})
            assert response.status_code == 429
            assert response.headers["retry-after"] == "1"
            assert response.json()["error"]["code"] == "rate_limit_exceeded"
            await server.error(PATH, {"prompt": "The", "n": 5})
        server.manager.runs_by_itself = True

    run(check, max_in_flight=4)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (PATH, {"prompt": ["The", "It"]}),
        ("/v1/chat/completions", {"messages": CHAT, "n": 2}),
        ("/v1/responses", {"input": "Hi"}),
        ("/v1/messages", {"messages": CHAT, "max_tokens": 2}),
        ("/v1/embeddings", {"input": ["The", "It"]}),
        ("/v1/score", {"text_1": "The", "text_2": ["a", "b"]}),
    ],
)
def test_a_full_queue_refuses_before_it_tokenizes(
    path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(server: TinyServer) -> None:
        async def encode(*args: object, **kwargs: object) -> None:
            raise AssertionError("tokenized in vain")

        server.manager.runs_by_itself = False
        monkeypatch.setattr(server.state.encoding_pool, "encode", encode)
        monkeypatch.setattr(server.state.chat_template, "render", encode)
        with server.state.engine.submit([Prompt([5], SamplingParams(n=2))], stream=False):
            response = await server.post(path, body)
            assert response.status_code == 429
            assert response.headers["retry-after"] == "1"
        server.manager.runs_by_itself = True

    run(check, max_in_flight=2)


def test_a_bug_shows_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(server: TinyServer) -> None:
        def broken(*args: object, **kwargs: object) -> None:
            raise RuntimeError("secret detail")

        monkeypatch.setattr(server.state.engine, "submit", broken)
        error = await server.error(PATH, {"prompt": "The"}, 500)
        assert error["type"] == "server_error"
        assert "secret" not in json.dumps(error)

    run(check)


def test_best_of_n_is_n() -> None:
    async def check(server: TinyServer) -> None:
        response = await server.complete(best_of=2, n=2)
        assert len(response["choices"]) == 2

    run(check)
