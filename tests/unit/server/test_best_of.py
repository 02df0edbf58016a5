"""`best_of` draws more samples than it answers with."""

from typing import Any

import pytest

from tests.unit.server.tiny_server import TinyServer, run
from tokasaurus.ipc.messages.to_manager import GenerateRequest
from tokasaurus.server.generation import Generation
from tokasaurus.server.logprobs import prompt_logprobs
from tokasaurus.server.routes import completions
from tokasaurus.server.schemas.prompt_logprobs import PromptLogprobs
from tokasaurus.tokenization.tokenizer import Tokenizer

# The manager double says that token i has log-probability -i / 8, unless 7 divides i.
SCRIPTS = {0: [40, 41], 1: [9, 50], 2: [9, 9, 9, 10], 3: [60]}


def scripted(server: TinyServer) -> None:
    def script(request: GenerateRequest) -> list[int]:
        return [*SCRIPTS[request.sampling.seed % 4], 1]

    server.manager.script = script


def test_the_likeliest_per_token_come_first() -> None:
    async def check(server: TinyServer) -> None:
        scripted(server)
        reply = await server.complete(prompt=["a", "bb"], best_of=4, n=2, seed=0)
        everything = await server.complete(prompt=["a", "bb"], n=4, seed=0, logprobs=0)
        texts = [c["text"] for c in everything["choices"]]
        assert [c["text"] for c in reply["choices"]] == [texts[2], texts[1], texts[6], texts[5]]
        assert [c["index"] for c in reply["choices"]] == [0, 1, 2, 3]
        assert all(c["logprobs"] is None for c in reply["choices"])
        assert reply["usage"] == everything["usage"]

    run(check)


def test_with_logprobs_and_echo() -> None:
    async def check(server: TinyServer) -> None:
        scripted(server)
        reply = await server.complete(prompt="The", best_of=3, seed=1, logprobs=2, echo=True)
        [choice] = reply["choices"]
        assert choice["text"].startswith("The")
        assert len(choice["logprobs"]["tokens"]) == reply["usage"]["prompt_tokens"] + 5

    run(check)


def test_prompts_are_scored_once_for_all_their_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[int] = []

    def score(generation: Generation, tokenizer: Tokenizer) -> PromptLogprobs:
        scored.append(generation.index)
        return prompt_logprobs(generation, tokenizer)

    monkeypatch.setattr(completions, "prompt_logprobs", score)

    async def check(server: TinyServer) -> None:
        scripted(server)
        prompts = [[21, 22], [21, 23, 24]]
        for options in ({"n": 2}, {"n": 2, "best_of": 4}):
            scored.clear()
            reply = await server.complete(prompt=prompts, prompt_logprobs=0, seed=0, **options)
            shown = [
                [next(iter(one)) for one in choice["prompt_logprobs"][1:]]
                for choice in reply["choices"]
            ]
            assert shown == [["22"], ["22"], ["23", "24"], ["23", "24"]]
            assert len(scored) == 2

    run(check)


@pytest.mark.parametrize(
    "body",
    [
        {"best_of": 0},
        {"best_of": 4097},
        {"best_of": 2, "n": 3},
        {"best_of": 2, "stream": True},
        {"best_of": "2"},
    ],
)
def test_refused(body: dict[str, Any]) -> None:
    async def check(server: TinyServer) -> None:
        error = await server.error("/v1/completions", {"prompt": "a"} | body)
        assert error["param"] == "best_of"

    run(check)


def test_samples_drawn_are_bounded() -> None:
    async def check(server: TinyServer) -> None:
        body = {"prompt": ["a"] * 100, "best_of": 128}
        assert (await server.error("/v1/completions", body))["param"] == "prompt"

    run(check)
