"""`truncate_prompt_tokens` over HTTP."""

import pytest

from tests.unit.server.tiny_server import TOKENIZER, TinyServer, run

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    ("kept", "expected"), [(3, [8, 9, 10]), (63, None), (-1, None), (None, None)]
)
def test_completion(kept: int | None, expected: list[int] | None) -> None:
    async def check(server: TinyServer) -> None:
        await server.complete(prompt=[[5, 6, 7, 8, 9, 10], [5]], truncate_prompt_tokens=kept)
        first, second = [r.prompt_ids.tolist() for r in server.manager.requests]
        assert first == (expected or [5, 6, 7, 8, 9, 10])
        assert second == [5]

    run(check)


def test_what_fits_leaves_room_for_the_output() -> None:
    async def check(server: TinyServer) -> None:
        await server.complete(prompt=[5] * 90 + [6], truncate_prompt_tokens=-1, max_tokens=10)
        [request] = server.manager.requests
        assert request.prompt_ids.tolist() == [5] * 53 + [6]

    run(check)


def test_echo_shows_what_the_model_saw() -> None:
    async def check(server: TinyServer) -> None:
        ids = TOKENIZER.encode("The quick brown")
        reply = await server.complete(
            prompt="The quick brown", truncate_prompt_tokens=2, echo=True, max_tokens=0, logprobs=0
        )
        [choice] = reply["choices"]
        assert choice["text"] == TOKENIZER.decode(ids[-2:])
        assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
        assert reply["usage"]["prompt_tokens"] == 2

    run(check)


def test_chat() -> None:
    async def check(server: TinyServer) -> None:
        await server.chat("x " * 100, truncate_prompt_tokens=5)
        assert len(server.manager.requests[0].prompt_ids) == 5

    run(check)


@pytest.mark.parametrize("value", [0, -2, 64, 10**25, 1.5, "1", True])
def test_refused(value: object) -> None:
    async def check(server: TinyServer) -> None:
        for path, body in (("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", CHAT)):
            error = await server.error(path, body | {"truncate_prompt_tokens": value})
            assert error["param"] == "truncate_prompt_tokens"

    run(check)
