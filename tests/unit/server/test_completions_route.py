"""POST /v1/completions as OpenAI's clients know it."""

from typing import Any

import pytest

from tests.unit.server.manager_double import ManagerDouble
from tests.unit.server.tiny_server import ANSWER, ANSWER_IDS, TOKENIZER, TinyServer, run
from tokasaurus.server.structured_output import StructuredOutput

PATH = "/v1/completions"


def test_whole_answer() -> None:
    async def check(server: TinyServer) -> None:
        response = await server.complete(model="tiny", max_tokens=None, stop_token_ids=[])
        assert response["object"] == "text_completion"
        assert response["model"] == "tiny"
        assert response["id"].startswith("cmpl-")
        [choice] = response["choices"]
        num_prompt = len(TOKENIZER.encode("The"))
        assert choice == {
            "text": TOKENIZER.decode(ANSWER_IDS[:16]),
            "index": 0,
            "logprobs": None,
            "finish_reason": "length",
        }
        assert response["usage"] == {
            "prompt_tokens": num_prompt,
            "completion_tokens": 16,
            "total_tokens": num_prompt + 16,
            "prompt_tokens_details": {"cached_tokens": 4},
        }
        response = await server.complete()
        assert response["choices"][0]["text"] == ANSWER
        assert response["choices"][0]["finish_reason"] == "stop"
        assert response["usage"]["completion_tokens"] == len(ANSWER_IDS)

    run(check)


@pytest.mark.parametrize(
    ("prompt", "num_prompts"),
    [("The", 1), (["The", "fox"], 2), ([5, 6], 1), ([[5], [6, 7], [8]], 3)],
)
def test_prompts_and_samples(prompt: Any, num_prompts: int) -> None:
    async def check(server: TinyServer) -> None:
        response = await server.complete(prompt=prompt, n=3, seed=7, temperature=0.5)
        assert [c["index"] for c in response["choices"]] == list(range(3 * num_prompts))
        requests = server.manager.requests
        assert [r.sampling.seed for r in requests] == [7, 8, 9] * num_prompts
        ids = [r.prompt_ids.tolist() for r in requests[::3]]
        if isinstance(prompt, str):
            assert ids == [TOKENIZER.encode(prompt)]
        elif isinstance(prompt[0], str):
            assert ids == TOKENIZER.encode_batch(prompt)
        else:
            assert ids == (prompt if isinstance(prompt[0], list) else [prompt])
        assert response["usage"]["prompt_tokens"] == sum(map(len, ids))
        assert response["usage"]["completion_tokens"] == 3 * num_prompts * len(ANSWER_IDS)
        assert response["usage"]["prompt_tokens_details"]["cached_tokens"] == 4 * num_prompts

    run(check)


def test_parameters_reach_the_manager() -> None:
    async def check(server: TinyServer) -> None:
        await server.complete(
            temperature=0.25,
            top_p=0.5,
            top_k=9,
            min_p=0.125,
            min_tokens=3,
            stop_token_ids=[30],
            priority=-2,
            cache_salt="s",
            logprobs=2,
        )
        await server.complete(ignore_eos=True, max_tokens=4, top_k=-1, temperature=0)
        first, second = server.manager.requests
        assert first.stop_token_ids == (30, 1)
        assert first.sampling.banned_until_min_tokens == (30, 1)
        values = first.sampling
        assert (values.temperature, values.top_p, values.top_k, values.min_p) == (
            0.25,
            0.5,
            9,
            0.125,
        )
        assert (values.min_tokens, values.num_top_logprobs, values.num_prompt_logprobs) == (
            3,
            2,
            -1,
        )
        assert (first.priority, first.cache_salt, first.max_tokens) == (-2, "s", 50)
        assert second.stop_token_ids == ()
        assert (second.sampling.top_k, second.sampling.temperature) == (0, 0.0)

    run(check)


@pytest.mark.parametrize("tokens_per_tick", [1, 3, 100])
@pytest.mark.parametrize(
    "stop", [".", "fox.\n\nIt", ["zzz", "jumps", "\n\nIt j"], "日本", "😀 over", "The"]
)
def test_stop_strings(stop: str | list[str], tokens_per_tick: int) -> None:
    stops = [stop] if isinstance(stop, str) else stop
    cut = min(ANSWER.find(s) for s in stops if s in ANSWER)

    async def check(server: TinyServer) -> None:
        server.manager.tokens_per_tick = tokens_per_tick
        response = await server.complete(stop=stop)
        [choice] = response["choices"]
        assert (choice["text"], choice["finish_reason"]) == (ANSWER[:cut], "stop")
        assert response["usage"]["completion_tokens"] < len(ANSWER_IDS)
        chunks = await server.stream(PATH, {"prompt": "The", "max_tokens": 50, "stop": stop})
        assert "".join(c["choices"][0]["text"] for c in chunks) == ANSWER[:cut]
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        including = await server.complete(stop=stop, include_stop_str_in_output=True)
        assert including["choices"][0]["text"].startswith(ANSWER[: cut + 1])

    run(check)


def test_stop_string_waits_for_min_tokens() -> None:
    async def check(server: TinyServer) -> None:
        num_tokens = len(TOKENIZER.encode("The quick brown fox."))
        response = await server.complete(stop=["o"], min_tokens=num_tokens)
        assert response["choices"][0]["text"] == ANSWER[: ANSWER.index("over")]

    run(check)


def test_stop_token_is_not_in_the_text() -> None:
    async def check(server: TinyServer) -> None:
        token_id = ANSWER_IDS[3]
        response = await server.complete(stop_token_ids=[token_id])
        [choice] = response["choices"]
        assert choice["text"] == TOKENIZER.decode(ANSWER_IDS[:3])
        assert choice["finish_reason"] == "stop"
        assert response["usage"]["completion_tokens"] == 4
        response = await server.complete(stop_token_ids=[token_id], include_stop_str_in_output=True)
        assert response["choices"][0]["text"] == TOKENIZER.decode(ANSWER_IDS[:4])

    run(check)


def test_end_of_text_on_the_last_allowed_token_is_a_stop() -> None:
    async def check(server: TinyServer) -> None:
        response = await server.complete(max_tokens=len(ANSWER_IDS))
        assert response["choices"][0]["finish_reason"] == "stop"
        response = await server.complete(skip_special_tokens=False)
        assert response["choices"][0]["text"] == ANSWER
        response = await server.complete(
            skip_special_tokens=False, ignore_eos=True, max_tokens=len(ANSWER_IDS)
        )
        assert response["choices"][0]["text"] == ANSWER + "</s>"
        assert response["choices"][0]["finish_reason"] == "length"

    run(check)


@pytest.mark.parametrize("echo", [False, True])
def test_logprobs(echo: bool) -> None:
    async def check(server: TinyServer) -> None:
        response = await server.complete(prompt="The fox", logprobs=2, echo=echo)
        [choice] = response["choices"]
        prompt_ids = TOKENIZER.encode("The fox") if echo else []
        text = choice["text"]
        assert text == ("The fox" if echo else "") + ANSWER
        logprobs = choice["logprobs"]
        lengths = {len(values) for values in logprobs.values()}
        assert lengths == {len(prompt_ids) + len(ANSWER_IDS)}
        starts = range(len(prompt_ids), len(prompt_ids) + len(ANSWER_IDS))
        for i, token_id in zip(starts, ANSWER_IDS, strict=True):
            expected = -9999.0 if token_id % 7 == 0 else -token_id / 8
            assert logprobs["token_logprobs"][i] == expected
            top = logprobs["top_logprobs"][i]
            assert top[logprobs["tokens"][i]] == expected
            assert 2 <= len(top) <= 3
        assert "bytes:\\xe6" in "".join(logprobs["tokens"])
        for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
            if not token.startswith("bytes:") and token != "</s>":
                assert text[offset:].startswith(token)
        if echo:
            assert logprobs["token_logprobs"][0] is None
            assert logprobs["top_logprobs"][0] is None
            assert server.manager.requests[0].sampling.num_prompt_logprobs == 2

    run(check)


def test_tokens_as_ids() -> None:
    async def check(server: TinyServer) -> None:
        options = {"prompt": "The fox", "max_tokens": 3, "logprobs": 1, "echo": True}
        [plain] = (await server.complete(**options))["choices"]
        [choice] = (await server.complete(**options, return_tokens_as_token_ids=True))["choices"]
        ids = [*TOKENIZER.encode("The fox"), *ANSWER_IDS[:3]]
        logprobs = choice["logprobs"]
        assert logprobs["tokens"] == [f"token_id:{i}" for i in ids]
        assert set(logprobs["top_logprobs"][-1]) == {f"token_id:{i}" for i in (20, ids[-1])}
        for same in ("token_logprobs", "text_offset"):
            assert logprobs[same] == plain["logprobs"][same]
        assert choice["text"] == plain["text"]

    run(check)


def let_scorers_run_last(manager: ManagerDouble) -> None:
    tick = manager.tick

    def tick_others_first() -> None:
        scorers = {
            i: run
            for i, run in manager.running.items()
            if run.request.sampling.num_prompt_logprobs >= 0
        }
        if len(scorers) == len(manager.running):
            tick()
            return
        manager.running = {i: r for i, r in manager.running.items() if i not in scorers}
        tick()
        manager.running |= scorers

    manager.tick = tick_others_first


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("is_late", [False, True])
def test_a_prompt_is_scored_once_for_all_its_samples(stream: bool, is_late: bool) -> None:
    body = {"prompt": ["The fox", "It jumps"], "max_tokens": 9, "n": 3, "echo": True, "logprobs": 1}

    async def check(server: TinyServer) -> None:
        if is_late:
            let_scorers_run_last(server.manager)
        scored: dict[int, Any] = {}
        replies = await server.stream(PATH, body) if stream else [await server.complete(**body)]
        for choice in [choice for reply in replies for choice in reply["choices"]]:
            scored.setdefault(choice["index"], choice["logprobs"])
        assert len(scored) == 6
        for index, logprobs in scored.items():
            assert logprobs["token_logprobs"][:2] == scored[index // 3 * 3]["token_logprobs"][:2]
            assert None not in logprobs["token_logprobs"][1:]
        asked = [r.sampling.num_prompt_logprobs for r in server.manager.requests]
        assert asked == [1, -1, -1] * 2

    run(check)


def test_parameters_that_prompts_share_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    num_compiled = 0
    compiled = StructuredOutput.compiled

    def count(output: StructuredOutput) -> str:
        nonlocal num_compiled
        num_compiled += 1
        return compiled(output)

    monkeypatch.setattr(StructuredOutput, "compiled", count)

    async def check(server: TinyServer) -> None:
        nonlocal num_compiled
        await server.complete(prompt="The", guided_choice=["The"])
        once, num_compiled = num_compiled, 0
        await server.complete(prompt=["The"] * 20, guided_choice=["The"])
        assert num_compiled == once

    run(check)


def test_prompt_logprobs() -> None:
    async def check(server: TinyServer) -> None:
        options = {"prompt_logprobs": 2, "n": 2}
        response = await server.complete(prompt=[21, 22, 14], **options)
        likely = {"logprob": -0.5, "decoded_token": TOKENIZER.token_bytes(20).decode()}
        for choice in response["choices"]:
            first, second, third = choice["prompt_logprobs"]
            assert first is None
            assert list(second) == ["22", "20", "21"]
            assert second["22"]["logprob"] == -22 / 8
            assert second["22"]["rank"] is None
            assert second["20"] == likely | {"rank": 1}
            assert second["21"]["rank"] == 2
            assert third["14"]["logprob"] == -9999
        assert server.manager.requests[0].sampling.num_prompt_logprobs == 2
        chat = await server.chat(prompt_logprobs=0)
        assert chat["prompt_logprobs"][0] is None
        assert {len(entry) for entry in chat["prompt_logprobs"][1:]} == {1}
        assert "prompt_logprobs" not in await server.chat()
        await server.complete(prompt_logprobs=1, echo=True, logprobs=1)
        for refused in ({"stream": True}, {"echo": True, "logprobs": 3}, {"prompt_logprobs": 21}):
            body = {"prompt": "The", "prompt_logprobs": 2} | refused
            error = await server.error("/v1/completions", body)
            assert error["param"] == "prompt_logprobs"

    run(check)


def test_logprobs_of_the_drawn_token_only() -> None:
    async def check(server: TinyServer) -> None:
        response = await server.complete(logprobs=0)
        top = response["choices"][0]["logprobs"]["top_logprobs"]
        assert {len(entry) for entry in top} == {1}

    run(check)


def test_scoring_a_prompt() -> None:
    async def check(server: TinyServer) -> None:
        response = await server.complete(prompt="The fox", logprobs=1, echo=True, max_tokens=0)
        [choice] = response["choices"]
        assert choice["text"] == "The fox"
        assert choice["finish_reason"] == "length"
        assert len(choice["logprobs"]["tokens"]) == len(TOKENIZER.encode("The fox"))
        assert choice["logprobs"]["token_logprobs"][0] is None
        assert response["usage"]["completion_tokens"] == 0
        response = await server.complete(max_tokens=0)
        assert response["choices"][0]["text"] == ""
        assert response["choices"][0]["finish_reason"] == "length"

    run(check)


def test_echo_of_token_ids() -> None:
    async def check(server: TinyServer) -> None:
        ids = TOKENIZER.encode("The fox")
        response = await server.complete(prompt=[ids, ids], echo=True, n=2)
        assert [c["text"] for c in response["choices"]] == ["The fox" + ANSWER] * 4

    run(check)


@pytest.mark.parametrize("tokens_per_tick", [1, 4, 100])
def test_stream_equals_whole(tokens_per_tick: int) -> None:
    async def check(server: TinyServer) -> None:
        server.manager.tokens_per_tick = tokens_per_tick
        body = {"prompt": ["The", "fox"], "n": 2, "logprobs": 1, "echo": True, "max_tokens": 50}
        whole = await server.complete(**body)
        *chunks, usage = await server.stream(
            PATH, body | {"stream_options": {"include_usage": True}}
        )
        assert usage["choices"] == []
        assert usage["usage"] == whole["usage"]
        assert all(chunk["usage"] is None for chunk in chunks)
        assert {(c["id"], c["object"], c["model"]) for c in chunks} == {
            (usage["id"], "text_completion", "tiny")
        }
        for choice in whole["choices"]:
            mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
            assert "".join(c["text"] for c in mine) == choice["text"]
            assert [c["finish_reason"] for c in mine[:-1]] == [None] * (len(mine) - 1)
            assert mine[-1]["finish_reason"] == choice["finish_reason"]
            for name, values in choice["logprobs"].items():
                assert [v for c in mine for v in c["logprobs"][name]] == values

    run(check)


def test_stream_without_usage_has_no_usage() -> None:
    async def check(server: TinyServer) -> None:
        chunks = await server.stream(PATH, {"prompt": "The"})
        assert not any("usage" in chunk for chunk in chunks)

    run(check)


def test_managers_share_the_work() -> None:
    async def check(server: TinyServer) -> None:
        await server.complete(prompt=["a", "b", "c", "d"], n=2)
        assert [len(m.requests) for m in server.managers] == [4, 4]
        prompts = [{r.prompt_ids.tobytes() for r in m.requests} for m in server.managers]
        assert not prompts[0] & prompts[1]

    run(check, num_managers=2)
