"""How much a model thinks: what clients of each API may ask, and what templates make of it."""

from typing import Any

import pytest

from tests.unit.server.tiny_server import TinyServer, run
from tests.unit.server.tool_calls import prompt_of, roomy

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
LEVELS = (
    "{% for m in messages %}{{ m.content }}{% endfor %} Effort: {{ reasoning_effort }}.</think>"
)


def asking(path: str, effort: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hi"}]
    if path == CHAT:
        return {"messages": messages, "reasoning_effort": effort}
    if path == RESPONSES:
        return {"input": "Hi", "reasoning": {"effort": effort}}
    return {"messages": messages, "max_tokens": 9, "output_config": {"effort": effort}}


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
def test_a_template_that_has_levels(path: str) -> None:
    async def check(server: TinyServer) -> None:
        for effort in ("low", "high", "none"):
            response = await server.post(path, asking(path, effort))
            assert response.status_code == 200, response.text
            assert prompt_of(server).endswith(f"Effort: {effort}.</think>")
        if path == RESPONSES:
            assert response.json()["reasoning"]["effort"] == "none"

    run(check, template=LEVELS)


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
def test_a_template_that_has_a_switch(path: str) -> None:
    async def check(server: TinyServer) -> None:
        assert (await server.post(path, asking(path, "none"))).status_code == 200
        assert prompt_of(server).endswith("<think>\n\n</think>\n\n")
        assert (await server.post(path, asking(path, None))).status_code == 200
        assert prompt_of(server).endswith("<assistant>")
        for effort in ("low", "medium"):
            response = await server.post(path, asking(path, effort))
            assert response.status_code == 400
            assert "does not read it" in response.json()["error"]["message"]

    roomy(check)


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
def test_a_model_that_never_thinks(path: str) -> None:
    async def check(server: TinyServer) -> None:
        assert (await server.post(path, asking(path, "none"))).status_code == 200
        for effort in ("low", "a lot", 5):
            response = await server.post(path, asking(path, effort))
            assert response.status_code == 400
            param = response.json()["error"]["param"]
            assert param in ("reasoning_effort", "reasoning.effort", "output_config.effort")

    run(check)


def test_contradictions_are_refused() -> None:
    async def check(server: TinyServer) -> None:
        body = asking(CHAT, "none")
        same = body | {"chat_template_kwargs": {"enable_thinking": False, "x": 1}}
        assert (await server.post(CHAT, same)).status_code == 200
        error = await server.error(CHAT, body | {"chat_template_kwargs": {"enable_thinking": True}})
        assert error["param"] == "reasoning_effort"

    roomy(check)
