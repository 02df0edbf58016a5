"""Tools and reasoning over /v1/chat/completions, also as the OpenAI SDK sees them."""

import json
from typing import Any

import pytest

from tests.unit.server.tiny_server import TOKENIZER, TinyServer, run
from tests.unit.server.tool_calls import (
    CALL,
    MESSAGES,
    PATH,
    QWEN,
    TOOL,
    allowed,
    ask,
    named,
    prompt_of,
    roomy,
    says,
    sdk,
    with_parameters,
)


def test_a_call() -> None:
    async def check(server: TinyServer) -> None:
        says(server, f"Let me see.\n{CALL}\n{CALL}")
        reply = await ask(server, tools=[TOOL], tool_choice="auto")
        [choice] = reply.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Let me see."
        first, second = choice.message.tool_calls or []
        assert (first.function.name, first.function.arguments) == ("f", '{"x": 1}')
        assert first.id.startswith("call_")
        assert first.id != second.id
        assert json.dumps(TOOL["function"]["name"]) in prompt_of(server)
        reply = await ask(server, tools=[TOOL], parallel_tool_calls=False, n=2)
        assert [len(c.message.tool_calls or []) for c in reply.choices] == [1, 1]
        says(server, CALL)
        assert (await ask(server, tools=[TOOL])).choices[0].message.content is None

    roomy(check)


@pytest.mark.parametrize("tokens_per_tick", [1, 5, 1000])
def test_streamed_calls(tokens_per_tick: int) -> None:
    async def check(server: TinyServer) -> None:
        server.manager.tokens_per_tick = tokens_per_tick
        says(server, f"Let me see.\n{CALL}\n{CALL}\nDone.")
        async with sdk(server) as client:
            events = client.chat.completions.stream(
                model="tiny", messages=MESSAGES, tools=[TOOL], extra_body={"logprobs": True}
            )
            async with events as stream:
                async for _ in stream:
                    pass
                whole = await stream.get_final_completion()
        [choice] = whole.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Let me see.\nDone."
        calls = choice.message.tool_calls or []
        assert [c.function.arguments for c in calls] == ['{"x": 1}'] * 2
        assert len({c.id for c in calls}) == 2
        assert len(choice.logprobs.content) == len(server.manager.script(None))  # type: ignore[arg-type]

    roomy(check)


def test_cut_by_length_is_no_finished_call() -> None:
    async def check(server: TinyServer) -> None:
        says(server, CALL)
        num_tokens = len(TOKENIZER.encode('<tool_call>\n{"name": "f", "arguments": {"x'))
        choice = (await ask(server, tools=[TOOL], max_tokens=num_tokens)).choices[0]
        assert choice.finish_reason == "length"
        assert (choice.message.tool_calls or [])[0].function.arguments == '{"x'

    roomy(check)


def test_choice_none_offers_nothing() -> None:
    async def check(server: TinyServer) -> None:
        says(server, CALL)
        reply = await ask(server, tools=[TOOL], tool_choice="none")
        assert reply.choices[0].message.content == CALL
        assert reply.choices[0].finish_reason == "stop"
        assert prompt_of(server).startswith("<user>")

    roomy(check)


def test_results_go_back() -> None:
    async def check(server: TinyServer) -> None:
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 7}'}}
        messages = [
            *MESSAGES,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "8"},
        ]
        response = await server.post(PATH, {"messages": messages, "tools": [TOOL]})
        assert response.status_code == 200
        assert prompt_of(server).endswith("<user>Hi<assistant><tool_call>7<tool>8<assistant>")

    roomy(check)


def test_mistral_ids_are_short() -> None:
    async def check(server: TinyServer) -> None:
        says(server, '[TOOL_CALLS][{"name": "f", "arguments": {}}]')
        reply = await ask(server, tools=[TOOL])
        [call] = reply.choices[0].message.tool_calls or []
        assert len(call.id) == 9
        assert call.id.isalnum()

    roomy(check, template="{# [TOOL_CALLS] tools #}" + QWEN.replace("<tool_call>", ""))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": 5}, "tools"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{**TOOL, "x": 1}]}, "tools[0].x"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "description": 5}}]},
            "tools[0].function.description",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "strict": 1}}]},
            "tools[0].function.strict",
        ),
        ({"tools": [with_parameters({"not": {}}, strict=True)]}, "tools[0].function.parameters"),
        (
            {
                "tools": [with_parameters({"uniqueItems": True}, strict=True)],
                "tool_choice": "required",
            },
            "tools[0].function.parameters",
        ),
        (
            {
                "tools": [with_parameters({"type": "string"}, strict=True)],
                "tool_choice": "required",
            },
            "tools[0].function.parameters",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "y": 1}}]},
            "tools[0].function.y",
        ),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [TOOL] * 300}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [], "tool_choice": named("f")}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": named("g")}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "required", "ignore_eos": True}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": 5}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "custom"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": allowed("auto", "g")}, "tool_choice.allowed_tools"),
        ({"tools": [TOOL], "tool_choice": allowed("never", "f")}, "tool_choice.allowed_tools"),
        ({"tools": [TOOL], "tool_choice": allowed("auto")}, "tool_choice.allowed_tools"),
        ({"tools": [TOOL], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"functions": [{"name": "f"}]}, "functions"),
    ],
)
def test_refused(body: dict[str, Any], param: str) -> None:
    async def check(server: TinyServer) -> None:
        error = await server.error(PATH, {"messages": MESSAGES} | body)
        assert error["param"] == param
        assert not server.manager.requests

    roomy(check)


def test_models_without_tools_refuse_them() -> None:
    async def check(server: TinyServer) -> None:
        error = await server.error(PATH, {"messages": MESSAGES, "tools": [TOOL]})
        assert error["param"] == "tools"
        assert "tool_parser=" in error["message"]
        body = {"messages": MESSAGES, "tools": [TOOL], "tool_choice": "none"}
        assert (await server.post(PATH, body)).status_code == 200

    run(check)


@pytest.mark.parametrize(
    ("variables", "output", "reasoning", "content"),
    [
        ({}, "<think>\nHm.\n</think>\n\n4", "Hm.", "4"),
        ({"enable_thinking": True}, "Hm.\n</think>\n\n4", "Hm.", "4"),
        ({"enable_thinking": False}, "4 </think>", None, "4 </think>"),
        ({}, "<think>Hm", "Hm", ""),
    ],
)
def test_reasoning(
    variables: dict[str, Any], output: str, reasoning: str | None, content: str
) -> None:
    async def check(server: TinyServer) -> None:
        says(server, output)
        body = {"messages": MESSAGES, "chat_template_kwargs": variables}
        message = (await server.post(PATH, body)).json()["choices"][0]["message"]
        assert message["content"] == content
        assert message.get("reasoning_content") == reasoning
        chunks = await server.stream(PATH, body)
        deltas = [c["choices"][0]["delta"] for c in chunks]
        assert "".join(d.get("content", "") for d in deltas) == content
        assert "".join(d.get("reasoning_content", "") for d in deltas) == (reasoning or "")

    roomy(check)


def test_reasoning_then_a_call() -> None:
    async def check(server: TinyServer) -> None:
        says(server, f"<think>{CALL}?</think>\n{CALL}")
        message = (await ask(server, tools=[TOOL])).choices[0].message
        assert message.content is None
        assert len(message.tool_calls or []) == 1
        assert message.reasoning_content == f"{CALL}?"  # type: ignore[attr-defined]

    roomy(check)


def test_parsers_can_be_turned_off() -> None:
    async def check(server: TinyServer) -> None:
        says(server, "<think>a</think>b")
        choice = (await server.chat())["choices"][0]
        assert choice["message"]["content"] == "<think>a</think>b"
        await server.error(PATH, {"messages": MESSAGES, "tools": [TOOL]})

    roomy(check, tool_parser="none", reasoning_parser="none")
