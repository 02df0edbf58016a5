"""Requests as LangChain, LlamaIndex, LiteLLM and lm-eval write them, and what they read."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.integration.conftest import Engine

CHAT = "/v1/chat/completions"
SDK_HEADERS = {
    "Authorization": "Bearer none",
    "OpenAI-Organization": "org",
    "OpenAI-Project": "project",
    "User-Agent": "OpenAI/Python 2.0",
    "X-Stainless-Lang": "python",
    "X-Stainless-Retry-Count": "0",
}
ANTHROPIC_HEADERS = {
    "X-Api-Key": "none",
    "Anthropic-Version": "2023-06-01",
    "Anthropic-Beta": "prompt-caching-2024-07-31",
}
SCHEMA = {
    "title": "Weather",
    "description": "Weather.",
    "type": "object",
    "properties": {"degrees": {"title": "Degrees", "type": "integer", "maximum": 99}},
    "required": ["degrees"],
    "additionalProperties": False,
}
PARTS = [{"type": "text", "text": "What is"}, {"type": "text", "text": "2 + 3?"}]


@pytest.fixture(scope="module")
def http(engine: Engine) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=engine.url, timeout=60, headers=SDK_HEADERS) as client:
        yield client


def post(http: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    response = http.post(path, json={"model": "demo"} | body)
    assert response.status_code == 200, response.text
    return response.json()


def test_langchain(http: httpx.Client) -> None:
    body = {
        "messages": [
            {"role": "developer", "content": "Be short."},
            {"role": "user", "content": PARTS},
            {"role": "assistant", "content": "5", "tool_calls": None, "refusal": None},
            {"role": "user", "content": "And 1 more?", "name": "me"},
        ],
        "max_completion_tokens": 30,
        "temperature": 0.0,
        "user": "me",
        "store": False,
        "metadata": {"run": "1"},
        "service_tier": "auto",
        "parallel_tool_calls": False,
        "modalities": ["text"],
    }
    whole = post(http, CHAT, **body, stream=False)
    assert whole["choices"][0]["message"]["role"] == "assistant"
    options = {"stream": True, "stream_options": {"include_usage": True}}
    text = http.post(CHAT, json={"model": "demo"} | body | options).text
    last = json.loads(text.split("\n\n")[-3].removeprefix("data: "))
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    answer = {"name": "Weather", "schema": SCHEMA, "strict": True, "description": "Weather."}
    structured = post(
        http, CHAT, **body, response_format={"type": "json_schema", "json_schema": answer}
    )
    if structured["choices"][0]["finish_reason"] == "stop":
        assert json.loads(structured["choices"][0]["message"]["content"])["degrees"] <= 99


def test_litellm_and_llama_index(http: httpx.Client) -> None:
    question = [{"role": "user", "content": "Hi"}]
    body = {"messages": question, "n": 2, "seed": 1, "stop": ["x"], "presence_penalty": 0.1}
    neutral = {"logit_bias": {}, "functions": [], "function_call": "auto", "tools": []}
    assert len(post(http, CHAT, **body, **neutral, max_tokens=5)["choices"]) == 2
    response = post(http, "/v1/responses", input=question, max_output_tokens=5, truncation=None)
    assert response["output"][0]["content"][0]["type"] == "output_text"
    message = http.post(
        "/v1/messages",
        headers=ANTHROPIC_HEADERS,
        json={
            "model": "demo",
            "max_tokens": 5,
            "system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}],
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        },
    ).json()
    assert message["type"] == "message"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning_effort": "medium"}, "reasoning_effort"),
        ({"store": True}, "store"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"verbosity": "low"}, "verbosity"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0]"),
    ],
    ids=str,
)
def test_what_can_not_be_honoured_is_refused_by_name(
    http: httpx.Client, fields: dict[str, Any], param: str
) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2} | fields
    response = http.post(CHAT, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith(param)


def test_lm_eval_scores(http: httpx.Client) -> None:
    """Continuations are scored by echo; the one token that has to be drawn is left out."""

    def ids(text: str) -> list[int]:
        return post(http, "/tokenize", prompt=text, add_special_tokens=False)["tokens"]

    context, continuations = ids("import "), [ids("os\n"), ids("os\nzebra")]
    answer = post(
        http,
        "/v1/completions",
        prompt=[context + continuation for continuation in continuations],
        temperature=0,
        max_tokens=1,
        logprobs=1,
        seed=1234,
        echo=True,
    )
    sums = []
    for choice, continuation in zip(
        sorted(answer["choices"], key=lambda choice: choice["index"]), continuations, strict=True
    ):
        found = choice["logprobs"]["token_logprobs"][len(context) : -1]
        top = choice["logprobs"]["top_logprobs"][len(context) : -1]
        assert len(found) == len(top) == len(continuation)
        assert all(max(best.values()) >= own for own, best in zip(found, top, strict=True))
        sums.append(sum(found))
    assert sums[0] > sums[1]


def test_lm_eval_generates(http: httpx.Client) -> None:
    fields = {"max_tokens": 8, "temperature": 0, "seed": 1234}
    stop = ["\n\n", "Question:", "</s>"]
    answer = post(http, "/v1/completions", prompt=["def f", "import "], stop=stop, **fields)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    chat = {"messages": [{"role": "user", "content": "Hi", "type": "text"}], "stop": stop}
    assert post(http, CHAT, **chat, **fields)["choices"][0]["message"]["content"] is not None
