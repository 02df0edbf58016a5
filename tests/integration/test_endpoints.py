"""The endpoints beyond completions and chats, against real processes serving the demo model."""

import math
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response

from tests.integration.conftest import Engine

QUESTION = "What is 2 + 3?"


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def http(engine: Engine) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=engine.url, timeout=60) as http:
        yield http


def post(http: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    reply = http.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_tokenize_and_back(http: httpx.Client, engine: Engine) -> None:
    text = "def add(a, b):\n    return a + b  # \u65e5\u672c \U0001f600"
    tokenized = post(http, "/tokenize", model=engine.model, prompt=text)
    assert post(http, "/detokenize", tokens=tokenized["tokens"])["prompt"] == text
    chat = post(http, "/tokenize", messages=[{"role": "user", "content": QUESTION}])
    assert "<|im_start|>assistant" in post(http, "/detokenize", tokens=chat["tokens"])["prompt"]


def test_model_and_home_page(client: openai.OpenAI, http: httpx.Client, engine: Engine) -> None:
    assert client.models.retrieve(engine.model).id == engine.model
    page = http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert engine.url in page.text


def test_best_of_is_the_likeliest(client: openai.OpenAI, engine: Engine) -> None:
    options: dict[str, Any] = {
        "model": engine.model,
        "prompt": "def main",
        "seed": 3,
        "temperature": 1.0,
        "max_tokens": 12,
    }
    samples = client.completions.create(**options, n=6, logprobs=0).choices

    def mean(choice: Any) -> float:
        values = choice.logprobs.token_logprobs
        return sum(values) / len(values)

    best = max(samples, key=mean)
    [found] = client.completions.create(**options, best_of=6).choices
    assert found.text == best.text


def test_truncated_prompt(client: openai.OpenAI, engine: Engine) -> None:
    ids = list(range(100, 160))
    options: dict[str, Any] = {"model": engine.model, "max_tokens": 8, "temperature": 0}
    cut = client.completions.create(prompt=ids, extra_body={"truncate_prompt_tokens": 7}, **options)
    assert cut.usage is not None
    assert cut.usage.prompt_tokens == 7
    assert (
        cut.choices[0].text == client.completions.create(prompt=ids[-7:], **options).choices[0].text
    )


def test_stop_string_and_special_tokens_on_request(client: openai.OpenAI, engine: Engine) -> None:
    options: dict[str, Any] = {
        "model": engine.model,
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": 30,
    }
    text = client.chat.completions.create(**options).choices[0].message.content or ""
    stop = text[2:4]
    kept = client.chat.completions.create(
        **options, stop=stop, extra_body={"include_stop_str_in_output": True}
    )
    assert kept.choices[0].message.content == text[: text.index(stop) + len(stop)]
    shown = client.chat.completions.create(
        **options, extra_body={"skip_special_tokens": False, "include_stop_str_in_output": True}
    )
    assert shown.choices[0].message.content == text + "<|im_end|>"


def test_score_equals_echo(client: openai.OpenAI, http: httpx.Client, engine: Engine) -> None:
    first, second = "def main():", "\n    return 0"
    echoed = client.completions.create(
        model=engine.model, prompt=first + second, echo=True, logprobs=0, max_tokens=0
    ).choices[0]
    assert echoed.logprobs is not None
    scored = [
        logprob
        for logprob, offset in zip(
            echoed.logprobs.token_logprobs or [], echoed.logprobs.text_offset or [], strict=True
        )
        if offset >= len(first)
    ]
    [entry] = post(http, "/v1/score", text_1=first, text_2=second)["data"]
    assert entry["num_tokens"] == len(scored)
    assert entry["score"] == pytest.approx(math.fsum(scored), abs=0.05)  # type: ignore[arg-type]


def test_scores_rank(http: httpx.Client) -> None:
    greedy = post(
        http, "/v1/completions", prompt="import os\nimport ", max_tokens=3, temperature=0
    )["choices"][0]["text"]
    entries = post(http, "/v1/score", text_1="import os\nimport ", text_2=[greedy, "\u2603\u2603"])
    likely, unlikely = entries["data"]
    assert likely["score"] > unlikely["score"]
    assert not unlikely["is_greedy"]


def test_responses(client: openai.OpenAI, engine: Engine) -> None:
    first = client.responses.create(
        model=engine.model, input=QUESTION, temperature=0, max_output_tokens=30
    )
    Response.model_validate(first.to_dict())
    assert "5" in first.output_text
    with client.responses.stream(
        model=engine.model, input=QUESTION, temperature=0, max_output_tokens=30
    ) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text == first.output_text
    second = client.responses.create(
        model=engine.model,
        input="And 3 + 4?",
        previous_response_id=first.id,
        temperature=0,
        max_output_tokens=30,
    )
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.total_tokens
    assert client.responses.retrieve(second.id).output_text == second.output_text
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(second.id)


def test_messages(client: openai.OpenAI, http: httpx.Client, engine: Engine) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    body = {"model": engine.model, "messages": messages, "max_tokens": 30, "temperature": 0}
    message = post(http, "/v1/messages", **body)
    [block] = message["content"]
    chat = client.chat.completions.create(
        model=engine.model,
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=30,
    )
    assert block["text"] == chat.choices[0].message.content
    assert message["stop_reason"] == "end_turn"
    usage = message["usage"]
    num_prompt = usage["input_tokens"] + usage["cache_read_input_tokens"]
    count = post(http, "/v1/messages/count_tokens", messages=messages)
    assert chat.usage is not None
    assert num_prompt == count["input_tokens"] == chat.usage.prompt_tokens
    streamed = http.post("/v1/messages", json=body | {"stream": True})
    assert streamed.text.startswith("event: message_start\n")
    assert streamed.text.endswith('data: {"type":"message_stop"}\n\n')


def test_tools_that_the_model_does_not_know_are_refused(
    client: openai.OpenAI, engine: Engine
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=engine.model,
            messages=[{"role": "user", "content": QUESTION}],
            tools=[{"type": "function", "function": {"name": "f"}}],
        )
    assert caught.value.param == "tools"
