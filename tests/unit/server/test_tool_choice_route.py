"""Forced and strict calls over the three chat endpoints: what the manager is asked to hold to."""

import functools
import json
from typing import Any

import pytest

from tests.unit.server.grammar_walks import GrammarWalker
from tests.unit.server.tiny_server import TOKENIZER, TinyServer, run
from tests.unit.server.tool_calls import CALL, MESSAGES, allowed, ask, named, roomy, says

SCHEMA = {
    "type": "object",
    "properties": {"x": {"type": "integer"}},
    "required": ["x"],
    "additionalProperties": False,
}
CALL_OF_G = CALL.replace('"f"', '"g"')
WRONG_CALL = CALL.replace("1", '"one"')
ANSWER = '{"x": 5}'
CHAT, RESPONSES, MESSAGES_PATH = "/v1/chat/completions", "/v1/responses", "/v1/messages"


@functools.cache
def walker() -> GrammarWalker:
    return GrammarWalker(TOKENIZER)


def accepts(server: TinyServer, text: str) -> bool:
    grammar = server.manager.requests[-1].sampling.grammar
    assert grammar, "any text will do"
    return walker().accepts(grammar, text)


def is_free(server: TinyServer) -> bool:
    return not server.manager.requests[-1].sampling.grammar


def tools_for(path: str, *, strict: bool = False) -> list[dict[str, Any]]:
    names = ("f", "g")
    if path == MESSAGES_PATH:
        return [{"name": n, "input_schema": SCHEMA, "strict": strict} for n in names]
    functions = [{"name": n, "parameters": SCHEMA, "strict": strict} for n in names]
    if path == RESPONSES:
        return [{"type": "function", **function} for function in functions]
    return [{"type": "function", "function": function} for function in functions]


BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": MESSAGES},
    RESPONSES: {"input": "Hi"},
    MESSAGES_PATH: {"messages": MESSAGES, "max_tokens": 500},
}
REQUIRED: dict[str, Any] = {CHAT: "required", RESPONSES: "required", MESSAGES_PATH: {"type": "any"}}
NAMED: dict[str, Any] = {
    CHAT: named("f"),
    RESPONSES: {"type": "function", "name": "f"},
    MESSAGES_PATH: {"type": "tool", "name": "f"},
}


async def send(server: TinyServer, path: str, **fields: Any) -> dict[str, Any]:
    fields = {"tools": tools_for(path)} | fields
    response = await server.post(path, BODIES[path] | fields)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("path", BODIES)
def test_required(path: str) -> None:
    async def check(server: TinyServer) -> None:
        says(server, f"{CALL}\n{CALL_OF_G}")
        answer = await send(server, path, tool_choice=REQUIRED[path])
        assert accepts(server, CALL)
        assert accepts(server, f"{CALL}\n{CALL_OF_G}")
        assert not accepts(server, WRONG_CALL)
        assert not accepts(server, "Well")
        if path == CHAT:
            [choice] = answer["choices"]
            assert choice["finish_reason"] == "tool_calls"
            assert len(choice["message"]["tool_calls"]) == 2
            await send(server, path, tool_choice="required", parallel_tool_calls=False)
        elif path == RESPONSES:
            assert answer["tool_choice"] == "required"
            assert [item["type"] for item in answer["output"]] == ["function_call"] * 2
            await send(server, path, tool_choice="required", parallel_tool_calls=False)
        else:
            assert answer["stop_reason"] == "tool_use"
            assert len(answer["content"]) == 2
            await send(server, path, tool_choice={"type": "any", "disable_parallel_tool_use": True})
        assert accepts(server, CALL)
        assert not accepts(server, f"{CALL}\n{CALL_OF_G}")

    roomy(check)


@pytest.mark.parametrize("path", BODIES)
def test_named(path: str) -> None:
    async def check(server: TinyServer) -> None:
        says(server, CALL)
        answer = await send(server, path, tool_choice=NAMED[path])
        assert accepts(server, CALL)
        assert not accepts(server, CALL_OF_G)
        assert not accepts(server, f"{CALL}\n{CALL}")
        prompt = TOKENIZER.decode(server.manager.requests[-1].prompt_ids.tolist())
        assert '"name": "g"' in prompt
        if path == CHAT:
            assert answer["choices"][0]["finish_reason"] == "stop"
            assert len(answer["choices"][0]["message"]["tool_calls"]) == 1
            chunks = await server.stream(
                CHAT,
                BODIES[path] | {"tools": tools_for(CHAT), "tool_choice": NAMED[path]},
            )
            assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
            pieces = [c for d in chunks for c in d["choices"][0]["delta"].get("tool_calls", ())]
            assert "".join(p["function"]["arguments"] for p in pieces) == '{"x": 1}'
        elif path == RESPONSES:
            assert answer["tool_choice"] == NAMED[path]
        else:
            assert answer["stop_reason"] == "tool_use"

    roomy(check)


@pytest.mark.parametrize("path", BODIES)
def test_strict(path: str) -> None:
    async def check(server: TinyServer) -> None:
        says(server, f"Well.\n{CALL}")
        await send(server, path)
        assert is_free(server)
        answer = await send(server, path, tools=tools_for(path, strict=True))
        assert accepts(server, "Well.")
        assert accepts(server, f"Well.\n{CALL}")
        assert not accepts(server, f"Well.\n{WRONG_CALL}")
        if path == RESPONSES:
            assert [tool["strict"] for tool in answer["tools"]] == [True, True]

    roomy(check)


@pytest.mark.parametrize(("path", "choice"), [(CHAT, "none"), (MESSAGES_PATH, {"type": "none"})])
def test_none_forces_nothing(path: str, choice: Any) -> None:
    async def check(server: TinyServer) -> None:
        await send(server, path, tools=tools_for(path, strict=True), tool_choice=choice)
        assert is_free(server)

    roomy(check)


def test_allowed_tools() -> None:
    async def check(server: TinyServer) -> None:
        says(server, CALL)
        await send(server, CHAT, tool_choice=allowed("auto", "f"))
        prompt = TOKENIZER.decode(server.manager.requests[-1].prompt_ids.tolist())
        assert '"name": "f"' in prompt
        assert '"name": "g"' not in prompt
        assert is_free(server)
        await send(server, CHAT, tool_choice=allowed("required", "f"))
        assert accepts(server, f"{CALL}\n{CALL}")
        assert not accepts(server, CALL_OF_G)
        tools = [{"type": "function", "name": "g"}]
        await send(
            server,
            RESPONSES,
            tool_choice={"type": "allowed_tools", "mode": "required", "tools": tools},
        )
        assert accepts(server, CALL_OF_G)
        assert not accepts(server, CALL)

    roomy(check)


TEXT_FORMAT = {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}


def test_text_format_of_responses() -> None:
    async def check(server: TinyServer) -> None:
        answer = await send(server, RESPONSES, tools=[], text={"format": TEXT_FORMAT})
        assert accepts(server, ANSWER)
        assert not accepts(server, "{}")
        assert answer["text"]["format"] == TEXT_FORMAT | {"description": None}
        answer = await send(server, RESPONSES, tools=[], text={"format": {"type": "json_object"}})
        assert accepts(server, "{}")
        assert not accepts(server, "5")
        assert answer["text"] == {"format": {"type": "json_object"}}
        answer = await send(server, RESPONSES, tools=[], text={"verbosity": "medium"})
        assert is_free(server)
        assert answer["text"] == {"format": {"type": "text"}}

    roomy(check)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}),
        (RESPONSES, {"text": {"format": TEXT_FORMAT}}),
    ],
)
def test_formats_leave_room_for_calls_and_reasoning(path: str, fields: dict[str, Any]) -> None:
    async def check(server: TinyServer) -> None:
        await send(server, path, **fields)
        for text in (ANSWER, CALL, f"<think>Hm.</think>\n{ANSWER}", f"<think>\n</think>{CALL}"):
            assert accepts(server, text)
        assert not accepts(server, f"{ANSWER}{CALL}")
        assert not accepts(server, "<think>Hm.</think>\nWell")
        await send(server, path, **fields, tool_choice="required")
        assert accepts(server, f"<think>Hm.</think>\n{CALL}")
        assert not accepts(server, ANSWER)

    roomy(check)


def test_reasoning_that_the_prompt_begins() -> None:
    async def check(server: TinyServer) -> None:
        says(server, f"Hm.\n</think>\n\n{CALL}")
        for thinks in (True, False):
            variables = {"enable_thinking": thinks}
            reply = await ask(
                server,
                tools=tools_for(CHAT),
                tool_choice="required",
                extra_body={"chat_template_kwargs": variables},
            )
            assert accepts(server, CALL) != thinks
            assert accepts(server, f"Hm.\n</think>\n\n{CALL}") == thinks
            if thinks:
                assert len(reply.choices[0].message.tool_calls or []) == 1

    roomy(check)


def test_models_without_tools_refuse_to_be_forced() -> None:
    async def check(server: TinyServer) -> None:
        for path in (CHAT, RESPONSES):
            body = BODIES[path] | {"tools": tools_for(path), "tool_choice": REQUIRED[path]}
            error = await server.error(path, body)
            assert error["param"] == "tools"
            assert "tool_parser=" in error["message"]
        assert not server.manager.requests

    run(check)


def test_tools_schemas_reach_errors_by_name() -> None:
    async def check(server: TinyServer) -> None:
        for path, place in (
            (CHAT, "tools[1].function.parameters"),
            (RESPONSES, "tools[1].parameters"),
            (MESSAGES_PATH, "tools[1].input_schema"),
        ):
            tools = json.loads(json.dumps(tools_for(path)).replace("integer", "rhyme"))
            tools[0] = tools_for(path)[0]
            (tools[1]["function"] if path == CHAT else tools[1])["strict"] = True
            body = BODIES[path] | {"tools": tools, "tool_choice": REQUIRED[path]}
            response = await server.post(path, body)
            assert response.status_code == 400
            assert response.json()["error"]["param"] == place
            assert "rhyme" in response.json()["error"]["message"]

    roomy(check)
