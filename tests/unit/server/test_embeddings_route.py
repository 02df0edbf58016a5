"""POST /v1/embeddings: the manager double's vectors say what it was asked for."""

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.unit.server.manager_double import MAX_MODEL_LEN, VOCAB_SIZE
from tests.unit.server.tiny_server import TOKENIZER, TinyServer, run
from tokasaurus.server.batches.item_runner import num_samples
from tokasaurus.server.pooling_choice import POOLING_FILE, read_pooling

PATH = "/v1/embeddings"


def expected(ids: list[int], pooling: str = "mean", dimensions: int = 4) -> np.ndarray:
    vector = np.array([sum(ids), len(ids), pooling == "mean", 2.0])[:dimensions]
    return vector / np.linalg.norm(vector)


async def embed(server: TinyServer, inputs: Any, **body: Any) -> dict[str, Any]:
    response = await server.post(PATH, {"input": inputs} | body)
    assert response.status_code == 200, response.text
    return response.json()


def test_forms_of_input() -> None:
    async def check(server: TinyServer) -> None:
        reply = await embed(server, ["The quick", "fox"], model="tiny")
        assert (reply["object"], reply["model"]) == ("list", "tiny")
        ids = [TOKENIZER.encode(text) for text in ("The quick", "fox")]
        for index, entry in enumerate(reply["data"]):
            assert (entry["object"], entry["index"]) == ("embedding", index)
            np.testing.assert_allclose(entry["embedding"], expected(ids[index]), atol=1e-7)
        num_tokens = sum(map(len, ids))
        assert reply["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        assert (await embed(server, ids))["data"] == reply["data"]
        assert (await embed(server, "fox"))["data"][0]["embedding"] == reply["data"][1]["embedding"]
        assert (await embed(server, ids[0]))["data"] == reply["data"][:1]
        assert all(r.max_tokens == 1 and not r.stop_token_ids for r in server.manager.requests)

    run(check)


def test_base64_holds_the_same_numbers() -> None:
    async def check(server: TinyServer) -> None:
        [plain] = (await embed(server, "The", encoding_format="float"))["data"]
        [packed] = (await embed(server, "The", encoding_format="base64"))["data"]
        numbers = np.frombuffer(base64.b64decode(packed["embedding"]), "<f4")
        assert numbers.tolist() == plain["embedding"]
        assert np.linalg.norm(numbers) == pytest.approx(1)

    run(check)


def test_dimensions_and_pooling() -> None:
    async def check(server: TinyServer) -> None:
        reply = await embed(server, [5, 6], dimensions=2, pooling="last")
        np.testing.assert_allclose(
            reply["data"][0]["embedding"], expected([5, 6], "last", 2), atol=1e-7
        )
        await embed(server, [5, 6])
        server.state.default_pooling = "last"
        await embed(server, [5, 6])
        assert [r.pooling for r in server.manager.requests] == ["last", "mean", "last"]
        for dimensions in (0, 5, -1, 10**30):
            error = await server.error(PATH, {"input": "a", "dimensions": dimensions})
            assert error["param"] == "dimensions"
            assert "between 1 and 4" in error["message"]

    run(check)


def test_special_tokens_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(server: TinyServer) -> None:
        asked = []
        encode = server.state.encoding_pool.encode

        async def note(texts: list[str], *, add_special_tokens: bool) -> list[list[int]]:
            asked.append(add_special_tokens)
            return await encode(texts, add_special_tokens=add_special_tokens)

        monkeypatch.setattr(server.state.encoding_pool, "encode", note)
        for body in ({}, {"add_special_tokens": None}, {"add_special_tokens": False}):
            await embed(server, "a", **body)
        assert asked == [True, True, False]

    run(check)


def test_scheduling_fields_arrive() -> None:
    async def check(server: TinyServer) -> None:
        await embed(server, "a", priority=3, cache_salt="s", timeout=50.0)
        [request] = server.manager.requests
        assert (request.priority, request.cache_salt) == (3, "s")
        assert request.predictor_key == "embeddings"

    run(check)


def test_lengths() -> None:
    async def check(server: TinyServer) -> None:
        ids = [5 + i for i in range(MAX_MODEL_LEN + 6)]
        assert (await embed(server, ids[:MAX_MODEL_LEN]))["usage"]["prompt_tokens"] == MAX_MODEL_LEN
        error = await server.error(PATH, {"input": [[5], ids]})
        assert (error["param"], error["code"]) == ("input", "context_length_exceeded")
        assert f"{MAX_MODEL_LEN} tokens" in error["message"]
        assert f"{MAX_MODEL_LEN + 6} tokens" in error["message"]
        for kept, num_tokens in ((3, 3), (-1, MAX_MODEL_LEN), (MAX_MODEL_LEN, MAX_MODEL_LEN)):
            await embed(server, ids, truncate_prompt_tokens=kept)
            assert server.manager.requests[-1].prompt_ids.tolist() == ids[-num_tokens:]
        error = await server.error(PATH, {"input": ids, "truncate_prompt_tokens": 0})
        assert error["param"] == "truncate_prompt_tokens"

    run(check)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": ["a", [5]]}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"input": [VOCAB_SIZE]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": ["a"] * 4097}, "input"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "pooling": "cls"}, "pooling"),
        ({"input": "a", "priority": 10**30}, "priority"),
        ({"input": "a", "timeout": 0}, "timeout"),
        ({"input": "a", "instruction": "b"}, "instruction"),
    ],
)
def test_bad_bodies(body: dict[str, Any], param: str) -> None:
    async def check(server: TinyServer) -> None:
        error = await server.error(PATH, body)
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert not server.manager.requests

    run(check)


def test_unknown_model_and_failure() -> None:
    async def check(server: TinyServer) -> None:
        error = await server.error(PATH, {"input": "a", "model": "other"}, 404)
        assert error["code"] == "model_not_found"
        server.manager.fail_with = "no"
        assert (await server.error(PATH, {"input": "a"}, 500))["code"] == "engine_failed"

    run(check)


def test_timeout_cancels() -> None:
    async def check(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        error = await server.error(PATH, {"input": "a", "timeout": 0.01}, 504)
        assert error["code"] == "timeout"
        assert server.manager.cancelled == [r.request_id for r in server.manager.requests]

    run(check)


def test_no_embeddings_without_hidden_states() -> None:
    async def check(server: TinyServer) -> None:
        limits = server.state.engine.limits
        server.state.engine._limits = replace(limits, hidden_size=0)
        error = await server.error(PATH, {"input": "a"})
        assert "can't make embeddings" in error["message"]

    run(check)


def test_a_batch_of_embeddings_counts_its_inputs() -> None:
    def count(body: dict[str, Any]) -> int:
        return num_samples({name: msgspec.Raw(json.dumps(v).encode()) for name, v in body.items()})

    assert count({"input": ["a", "b", "c"]}) == 3
    assert count({"input": [[1], [2, 3]]}) == 2
    assert count({"input": [1, 2, 3]}) == 1
    assert count({"input": "abc"}) == 1
    assert count({"input": [{"type": "message"}, {"type": "reasoning"}]}) == 1


@pytest.mark.parametrize(
    ("values", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, "last"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode_cls_token": True}, "mean"),
        ([], "mean"),
        (None, "mean"),
    ],
)
def test_pooling_of_a_checkpoint(tmp_path: Path, values: Any, pooling: str) -> None:
    if values is not None:
        file = tmp_path / POOLING_FILE
        file.parent.mkdir()
        file.write_text(json.dumps(values))
    assert read_pooling(tmp_path) == pooling
