"""What a client may send and must not break anything with: real processes, over HTTP."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.integration.conftest import Engine


@pytest.fixture(scope="module")
def http(engine: Engine) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=engine.url, timeout=60) as http:
        yield http
        reply = http.post(
            "/v1/completions", json={"model": engine.model, "prompt": "x", "max_tokens": 2}
        )
        assert reply.status_code == 200, "the engine no longer answers"


def completion(engine: Engine, **fields: Any) -> dict[str, Any]:
    return {"model": engine.model, "prompt": "def f():", "max_tokens": 4, **fields}


def chat(engine: Engine, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hello"}]
    return {"model": engine.model, "messages": messages, "max_tokens": 4, **fields}


def assert_error(reply: httpx.Response, status: int, param: str | None = None) -> str:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    if param is not None:
        assert error["param"] == param
    assert error["message"]
    return error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": [10**12]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": -1}, "n"),
        ({"n": 10**9}, "n"),
        ({"n": "two"}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"seed": "x"}, "seed"),
        ({"stop": [1]}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop_token_ids": [10**7]}, "stop_token_ids"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": 10**6}, "logprobs"),
        ({"min_tokens": 9}, "min_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"no_such_field": 1}, "no_such_field"),
    ],
    ids=str,
)
def test_invalid_values_name_their_parameter(
    http: httpx.Client, engine: Engine, fields: dict[str, Any], param: str
) -> None:
    assert_error(http.post("/v1/completions", json=completion(engine, **fields)), 400, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, None),
        ({"messages": [{"role": "wizard", "content": "x"}]}, None),
        ({"messages": [{"content": "x"}]}, None),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 1000}, "top_logprobs"),
        ({"max_completion_tokens": -5}, "max_completion_tokens"),
    ],
    ids=str,
)
def test_invalid_chats(
    http: httpx.Client, engine: Engine, fields: dict[str, Any], param: str | None
) -> None:
    assert_error(http.post("/v1/chat/completions", json=chat(engine, **fields)), 400, param)


def test_empty_string_prompt_is_answered_or_refused(http: httpx.Client, engine: Engine) -> None:
    reply = http.post("/v1/completions", json=completion(engine, prompt=""))
    if reply.status_code != 200:
        assert_error(reply, 400, "prompt")


def test_max_tokens_zero_generates_nothing(http: httpx.Client, engine: Engine) -> None:
    reply = http.post("/v1/completions", json=completion(engine, max_tokens=0))
    if reply.status_code == 200:
        assert reply.json()["choices"][0]["text"] == ""
        assert reply.json()["usage"]["completion_tokens"] == 0
    else:
        assert_error(reply, 400, "max_tokens")


def test_over_long_prompt_names_both_lengths(http: httpx.Client, engine: Engine) -> None:
    limit = http.get("/v1/models").json()["data"][0]["max_model_len"]
    reply = http.post("/v1/completions", json=completion(engine, prompt=[5] * (limit + 10)))
    assert reply.status_code in (400, 413)
    message = reply.json()["error"]["message"]
    assert str(limit) in message
    assert str(limit + 10) in message
    reply = http.post(
        "/v1/completions", json=completion(engine, prompt=[5] * (limit - 1), max_tokens=50)
    )
    assert reply.status_code in (400, 413)


def test_prompt_that_just_fits(http: httpx.Client, engine: Engine) -> None:
    limit = http.get("/v1/models").json()["data"][0]["max_model_len"]
    reply = http.post(
        "/v1/completions",
        json=completion(engine, prompt=[5] * (limit - 1), max_tokens=1, ignore_eos=True),
    )
    assert reply.status_code == 200, reply.text
    assert reply.json()["usage"]["total_tokens"] == limit


def test_unknown_model(http: httpx.Client, engine: Engine) -> None:
    reply = http.post("/v1/completions", json=completion(engine, model="no/such"))
    assert "no/such" in assert_error(reply, 404)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"model": NaN, "prompt": "x"}']
)
def test_bodies_that_are_no_requests(http: httpx.Client, body: bytes) -> None:
    reply = http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert 400 <= reply.status_code < 500
    assert reply.status_code != 422
    assert reply.json()["error"]["message"]


def test_unknown_paths_and_methods(http: httpx.Client) -> None:
    assert_error(http.get("/v1/nothing"), 404)
    assert_error(http.get("/v1/completions"), 405)


def test_eos_on_the_last_allowed_token_says_stop(http: httpx.Client, engine: Engine) -> None:
    messages = [{"role": "user", "content": "What is 2 + 3?"}]
    body = chat(engine, messages=messages, temperature=0, max_tokens=64)
    free = http.post("/v1/chat/completions", json=body).json()
    assert free["choices"][0]["finish_reason"] == "stop"
    exact = {**body, "max_tokens": free["usage"]["completion_tokens"]}
    reply = http.post("/v1/chat/completions", json=exact).json()
    assert reply["choices"][0]["finish_reason"] == "stop"
    short = {**body, "max_tokens": free["usage"]["completion_tokens"] - 1}
    reply = http.post("/v1/chat/completions", json=short).json()
    assert reply["choices"][0]["finish_reason"] == "length"


def test_health_endpoints(http: httpx.Client) -> None:
    for path in ("/health", "/ready", "/ping"):
        assert http.get(path).status_code == 200
