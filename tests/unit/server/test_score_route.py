"""POST /v1/score: the manager double says token i has log-probability -i / 8."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from tests.unit.server.tiny_server import TOKENIZER, TinyServer, run
from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.scoring import scored_prompts, text_pairs
from tokasaurus.tokenization.encoding_pool import EncodingPool

PATH = "/v1/score"


def expected(ids: list[int]) -> float:
    return -9999.0 if any(i % 7 == 0 for i in ids) else sum(-i / 8 for i in ids)


async def score(server: TinyServer, first: Any, second: Any, **body: Any) -> dict[str, Any]:
    response = await server.post(PATH, {"text_1": first, "text_2": second} | body)
    assert response.status_code == 200, response.text
    return response.json()


def test_pairs() -> None:
    async def check(server: TinyServer) -> None:
        reply = await score(server, ["The", "It"], [" quick", " jumps over"], model="tiny")
        assert (reply["object"], reply["model"]) == ("list", "tiny")
        for index, (first, second) in enumerate((("The", " quick"), ("It", " jumps over"))):
            ids = TOKENIZER.encode(first + second)[len(TOKENIZER.encode(first)) :]
            entry = reply["data"][index]
            assert entry == {
                "index": index,
                "object": "score",
                "score": pytest.approx(expected(ids)),
                "num_tokens": len(ids),
                "is_greedy": False,
            }
        assert reply["usage"]["completion_tokens"] == 0
        assert [r.sampling.num_prompt_logprobs for r in server.manager.requests] == [1, 1]

    run(check)


def test_one_text_with_many() -> None:
    async def check(server: TinyServer) -> None:
        many = [" quick", " brown", " fox"]
        pairs = await score(server, ["The"] * 3, many)
        assert (await score(server, "The", many))["data"] == pairs["data"]
        assert (await score(server, ["The"], many))["data"] == pairs["data"]
        assert len((await score(server, many, "."))["data"]) == 3

    run(check)


def test_tokens_across_the_seam() -> None:
    async def check(server: TinyServer) -> None:
        whole = TOKENIZER.encode(" quick brown")
        for cut in range(1, len(" quick brown")):
            text = " quick brown"
            [entry] = (await score(server, text[:cut], text[cut:]))["data"]
            sent = server.manager.requests[-1].prompt_ids.tolist()
            assert TOKENIZER.decode(sent) == text
            assert 0 < entry["num_tokens"] < len(sent) or sent == whole

    run(check)


def test_options_reach_the_manager() -> None:
    async def check(server: TinyServer) -> None:
        await score(server, "a", "b", priority=3, cache_salt="s")
        [request] = server.manager.requests
        assert (request.priority, request.cache_salt) == (3, "s")

    run(check)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"text_1": ""}, "text_1"),
        ({"text_2": ""}, "text_2"),
        ({"text_1": []}, "text_1"),
        ({"text_2": [""]}, "text_2"),
        ({"text_2": 5}, "text_2"),
        ({"text_1": [[1]]}, "text_1"),
        ({"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_2"),
        ({"text_2": ["a"] * 5000}, "text_2"),
        ({"text_2": "x " * 100}, "text_2"),
        ({"priority": "high"}, "priority"),
        ({"temperature": 1}, "temperature"),
    ],
)
def test_refused(body: dict[str, Any], param: str) -> None:
    async def check(server: TinyServer) -> None:
        error = await server.error(PATH, {"text_1": "a", "text_2": "b"} | body)
        assert error["param"] == param
        assert not server.manager.requests

    run(check)


def test_characters_of_all_pairs_are_bounded() -> None:
    long, many = "a" * (2**25 // 4 - 1), ["b"] * 4
    assert len(text_pairs(long, many)) == 4
    for first, second in ((long + "aa", many), (many, long + "aa")):
        with pytest.raises(InvalidRequestError) as caught:
            text_pairs(first, second)
        assert caught.value.param == "text_2"


def test_a_text_that_stands_first_often_is_tokenized_once() -> None:
    seen: list[list[str]] = []

    class Recorder(EncodingPool):
        async def encode(
            self, texts: Sequence[str], *, add_special_tokens: bool = True
        ) -> list[list[int]]:
            seen.append(list(texts))
            return await super().encode(texts, add_special_tokens=add_special_tokens)

    async def main() -> None:
        pool = Recorder(TOKENIZER)
        pairs = text_pairs(["The", "It", "The"], [" quick", " brown", " fox"])
        await scored_prompts(pairs, pool, add_special_tokens=True)
        pool.close()

    asyncio.run(main())
    assert seen[0] == ["The", "It"]
