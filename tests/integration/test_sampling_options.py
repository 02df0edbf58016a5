"""Penalties, biases, bans and grammars change what the demo model says, over HTTP."""

import asyncio
import json
import re
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


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "sizes": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
        "kind": {"enum": ["cat", "dog"]},
        "owner": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/Person"}]},
    },
    "required": ["name", "sizes", "kind", "owner"],
    "additionalProperties": False,
    "$defs": {
        "Person": {
            "type": "object",
            "properties": {"age": {"type": "integer", "minimum": 1, "maximum": 120}},
            "required": ["age"],
            "additionalProperties": False,
        }
    },
}


def check_schema(value: dict[str, Any]) -> None:
    assert set(value) == {"name", "sizes", "kind", "owner"}
    assert isinstance(value["name"], str)
    assert len(value["name"]) <= 8
    assert len(value["sizes"]) <= 3
    assert all(type(size) is int for size in value["sizes"])
    assert value["kind"] in ("cat", "dog")
    assert value["owner"] is None or 1 <= value["owner"].pop("age") <= 120


def chat(http: httpx.Client, **options: Any) -> list[dict[str, Any]]:
    body = {"messages": [{"role": "user", "content": "Describe a pet."}], "max_tokens": 400}
    response = http.post("/v1/chat/completions", json=body | options)
    assert response.status_code == 200, response.text
    return response.json()["choices"]


def test_json_schema_holds_for_every_sample(http: httpx.Client) -> None:
    options = {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "pet", "schema": SCHEMA, "strict": True},
        },
        "n": 6,
        "seed": 5,
        "temperature": 1.2,
    }
    choices = chat(http, **options)
    num_complete = 0
    for choice in choices:
        if choice["finish_reason"] == "stop":
            check_schema(json.loads(choice["message"]["content"]))
            num_complete += 1
    assert num_complete > 2
    assert len({choice["message"]["content"] for choice in choices}) > 1
    assert chat(http, **options) == choices


def test_json_object(http: httpx.Client) -> None:
    [choice] = chat(
        http, response_format={"type": "json_object"}, seed=1, logit_bias={"95": 6}, min_tokens=2
    )
    text = choice["message"]["content"]
    assert text.startswith("{")
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"guided_regex": r"[0-9]{3}-[0-9]{4}"}, r"[0-9]{3}-[0-9]{4}"),
        ({"guided_choice": ["red", "green 🙂", 'a "b"']}, 'red|green 🙂|a "b"'),
        ({"guided_grammar": 'root ::= "x" digit+\ndigit ::= [0-4]'}, "x[0-4]+"),
        ({"structured_outputs": {"grammar": 'start: "<" /[a-f]{4,8}/ ">"'}}, "<[a-f]{4,8}>"),
        ({"structured_outputs": {"regex": "(ab){2,4}"}}, "(ab){2,4}"),
    ],
    ids=str,
)
def test_other_grammars(http: httpx.Client, fields: dict[str, Any], pattern: str) -> None:
    for seed in range(4):
        body = {"prompt": "def main():", "max_tokens": 60, "seed": seed, "temperature": 1.0}
        response = http.post("/v1/completions", json=body | fields)
        assert response.status_code == 200, response.text
        choice = response.json()["choices"][0]
        if choice["finish_reason"] == "stop":
            assert re.fullmatch(pattern, choice["text"]), choice["text"]
        else:
            assert "+" in pattern, "only the endless one may be cut by length"


def test_an_end_that_only_the_grammar_sets(http: httpx.Client) -> None:
    """`min_tokens` can't go on after the grammar's end, and `stop` still cuts."""
    fields = {"guided_regex": "abc", "prompt": "x", "max_tokens": 50}
    whole = http.post("/v1/completions", json=fields | {"min_tokens": 40}).json()["choices"][0]
    assert (whole["text"], whole["finish_reason"]) == ("abc", "stop")
    cut = http.post("/v1/completions", json=fields | {"stop": ["c"]}).json()["choices"][0]
    assert (cut["text"], cut["finish_reason"]) == ("ab", "stop")


def test_streamed_grammar_equals_whole(http: httpx.Client) -> None:
    body = {"prompt": "x", "guided_regex": "[a-f ]{20,30}", "seed": 3, "max_tokens": 60}
    whole = http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    with http.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
        events = [line[6:] for line in response.iter_lines() if line.startswith("data: {")]
    assert "".join(json.loads(event)["choices"][0]["text"] for event in events) == whole


def test_a_ban_that_leaves_nothing_fails_that_request_alone(http: httpx.Client) -> None:
    body = {"prompt": "x", "guided_choice": ["a"], "bad_words": ["a"], "max_tokens": 5}
    response = http.post("/v1/completions", json=body)
    assert response.status_code == 500
    assert "leave no token to draw" in response.json()["error"]["message"]
    assert complete(http, max_tokens=2)["text"]
