"""Penalties, biases and bans change what the demo model says, over HTTP, in both endpoints."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.integration.conftest import Engine

PROMPT = "import os\nimport sys\n"


@pytest.fixture(scope="module")
def http(engine: Engine) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=engine.url, timeout=120) as client:
        yield client


def complete(http: httpx.Client, **body: Any) -> dict[str, Any]:
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 40, "ignore_eos": True} | body
    response = http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def scored(http: httpx.Client, **body: Any) -> dict[str, Any]:
    return complete(http, logprobs=0, **body)["logprobs"]


def num_repeats(tokens: list[str]) -> int:
    return sum(count - 1 for count in Counter(tokens).values())


@pytest.mark.parametrize(
    "options",
    [{"frequency_penalty": 2}, {"presence_penalty": 2}, {"repetition_penalty": 1.5}],
    ids=str,
)
def test_penalties_avoid_repeating(http: httpx.Client, options: dict[str, float]) -> None:
    plain = num_repeats(scored(http)["tokens"])
    assert num_repeats(scored(http, **options)["tokens"]) < plain
    assert (
        complete(http, **dict.fromkeys(options, 1 if "repetition_penalty" in options else 0))[
            "text"
        ]
        == complete(http)["text"]
    )


def test_logit_bias_forces_and_forbids(http: httpx.Client) -> None:
    [token] = http.post("/tokenize", json={"prompt": "x", "add_special_tokens": False}).json()[
        "tokens"
    ]
    assert complete(http, logit_bias={str(token): 100}, max_tokens=5)["text"] == "xxxxx"
    plain = scored(http)
    first = plain["tokens"][0]
    [first_id] = http.post("/tokenize", json={"prompt": first, "add_special_tokens": False}).json()[
        "tokens"
    ]
    assert scored(http, logit_bias={str(first_id): -100})["tokens"][0] != first


def test_bad_words_never_appear(http: httpx.Client) -> None:
    text = complete(http)["text"]
    words = [word for word in dict.fromkeys(text.split()) if word.isalpha()][:3]
    assert words
    free_of_them = complete(http, bad_words=words)["text"]
    assert free_of_them != text
    assert not set(words) & set(free_of_them.split())


def test_only_allowed_tokens(http: httpx.Client) -> None:
    ids = [50, 60, 70]
    pieces = [
        http.post("/detokenize", json={"tokens": [token_id]}).json()["prompt"] for token_id in ids
    ]
    tokens = scored(http, allowed_token_ids=ids, temperature=1, seed=3)["tokens"]
    assert len(tokens) == 40
    assert set(tokens) <= set(pieces)


def test_logprobs_are_the_models_own(http: httpx.Client) -> None:
    plain = scored(http, max_tokens=1)
    [token_id] = http.post(
        "/tokenize", json={"prompt": plain["tokens"][0], "add_special_tokens": False}
    ).json()["tokens"]
    biased = scored(http, max_tokens=1, logit_bias={str(token_id): 50})
    assert biased["token_logprobs"] == pytest.approx(plain["token_logprobs"], abs=1e-3)


def test_chat_takes_them_too(http: httpx.Client) -> None:
    def ask(**options: Any) -> str:
        body = {"messages": [{"role": "user", "content": "What is 2 + 3?"}], "temperature": 0}
        response = http.post("/v1/chat/completions", json=body | {"max_tokens": 30} | options)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["message"]["content"]

    assert "5" in ask()
    assert "5" not in ask(bad_words=["5"])
    assert ask(repetition_penalty=1.0, frequency_penalty=0, logit_bias={}, bad_words=[]) == ask()


def test_one_batch_with_requests_that_use_none(engine: Engine) -> None:
    """Everyone gets what they get alone."""
    kinds: list[dict[str, Any]] = [
        {},
        {"frequency_penalty": 1.5, "presence_penalty": 0.5},
        {"repetition_penalty": 1.3, "logit_bias": {"60": 3}},
        {"bad_words": ["import", "os"]},
    ]

    async def ask(client: httpx.AsyncClient, i: int) -> str:
        body = {"prompt": PROMPT, "max_tokens": 24, "temperature": 0.8, "seed": i}
        response = await client.post("/v1/completions", json=body | kinds[i % 4])
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["text"]

    async def main() -> None:
        async with httpx.AsyncClient(base_url=engine.url, timeout=120) as client:
            together = await asyncio.gather(*(ask(client, i) for i in range(32)))
            alone = [await ask(client, i) for i in range(8)]
        assert alone == together[:8]

    asyncio.run(main())
