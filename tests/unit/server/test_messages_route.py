"""POST /v1/messages as Anthropic's clients know it."""

import json
from typing import Any

import pytest

from tests.unit.server.raw_client import RawClient, settle
from tests.unit.server.tiny_server import ANSWER, ANSWER_IDS, TOKENIZER, TinyServer, run
from tests.unit.server.tool_calls import CALL, QWEN, prompt_of, says

PATH = "/v1/messages"
MESSAGES = [{"role": "user", "content": "Hi"}]
BODY = {"model": "tiny", "max_tokens": 1000, "messages": MESSAGES}
TOOL_USE = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
TOOL_RESULT = {"type": "tool_result", "tool_use_id": "1", "content": "x"}
TOOL = {"name": "f", "description": "Does it.", "input_schema": {"type": "object"}}


def roomy(check: Any, **options: Any) -> None:
    run(check, **{"template": QWEN, "max_model_len": 2048} | options)


async def create(server: TinyServer, **body: Any) -> dict[str, Any]:
    response = await server.post(PATH, BODY | body)
    assert response.status_code == 200, response.text
    return response.json()


async def stream(server: TinyServer, **body: Any) -> list[dict[str, Any]]:
    response = await server.post(PATH, BODY | body | {"stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for part in response.text.strip().split("\n\n"):
        name, data = part.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def joined(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a stream's events add up to, as clients add them."""
    assert events[0]["type"] == "message_start"
    assert events[-1]["type"] == "message_stop"
    message = events[0]["message"]
    for event in events[1:-1]:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(message["content"])
                message["content"].append(event["content_block"])
                arguments = ""
            case "content_block_delta":
                assert event["index"] == len(message["content"]) - 1
                block, delta = message["content"][-1], event["delta"]
                if delta["type"] == "input_json_delta":
                    arguments += delta["partial_json"]
                else:
                    name = delta["type"].removesuffix("_delta")
                    block[name] += delta[name]
            case "content_block_stop":
                if message["content"][-1]["type"] == "tool_use":
                    message["content"][-1]["input"] = json.loads(arguments)
            case "message_delta":
                message |= event["delta"]
                message["usage"] = event["usage"]
    return message


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    blocks = [{k: v for k, v in block.items() if k != "id"} for block in message["content"]]
    return message | {"id": "", "content": blocks}


def test_whole_answer() -> None:
    async def check(server: TinyServer) -> None:
        message = await create(server, system="Be nice.", temperature=0.5, top_k=3, top_p=0.5)
        assert message["id"].startswith("msg_")
        num_prompt = len(server.manager.requests[0].prompt_ids)
        assert {k: v for k, v in message.items() if k != "id"} == {
            "type": "message",
            "role": "assistant",
            "model": "tiny",
            "content": [{"type": "text", "text": ANSWER}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {
                "input_tokens": num_prompt - 4,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 4,
                "output_tokens": len(ANSWER_IDS),
            },
        }
        assert prompt_of(server) == "<system>Be nice.<user>Hi<assistant>"
        sampling = server.manager.requests[0].sampling
        assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.5, 3, 0.5)
        count = await server.post(
            PATH + "/count_tokens", {"messages": MESSAGES, "system": "Be nice."}
        )
        assert count.json() == {"input_tokens": num_prompt}

    roomy(check)


def test_why_it_stopped() -> None:
    async def check(server: TinyServer) -> None:
        message = await create(server, stop_sequences=["quick", "fox"])
        assert message["content"] == [{"type": "text", "text": "The "}]
        assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "quick")
        message = await create(server, max_tokens=2)
        assert (message["stop_reason"], message["stop_sequence"]) == ("max_tokens", None)

    roomy(check)


@pytest.mark.parametrize("tokens_per_tick", [1, 7, 1000])
def test_streams_add_up_to_the_whole(tokens_per_tick: int) -> None:
    async def check(server: TinyServer) -> None:
        server.manager.tokens_per_tick = tokens_per_tick
        for text in (ANSWER, f"<think>Hm.</think>Let me see.\n{CALL}\n{CALL}\nDone", "", CALL):
            says(server, text)
            whole = await create(server, tools=[TOOL])
            events = await stream(server, tools=[TOOL])
            assert without_ids(joined(events)) == without_ids(whole)
        assert whole["stop_reason"] == "tool_use"
        [block] = whole["content"]
        assert (block["type"], block["name"], block["input"]) == ("tool_use", "f", {"x": 1})

    roomy(check)


def test_the_start_does_not_wait_for_a_token() -> None:
    async def check(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        client = RawClient(server, PATH, **BODY, stream=True)
        await settle()
        assert b"message_start" in client.writes[0]
        client.leave()
        await client.task

    roomy(check)


def test_failure_in_the_middle_of_a_stream() -> None:
    async def check(server: TinyServer) -> None:
        server.manager.fail_with = "The worker died."
        events = await stream(server)
        assert events[-1] == {
            "type": "error",
            "error": {"type": "api_error", "message": "The worker died."},
        }

    roomy(check)


def test_results_go_back() -> None:
    async def check(server: TinyServer) -> None:
        await create(
            server,
            tools=[TOOL],
            messages=[
                {"role": "user", "content": [{"type": "text", "text": "a"}]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "hm", "signature": ""},
                        {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}},
                        {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 7}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "t1",
                            "content": [{"type": "text", "text": "8"}],
                        },
                        {"type": "text", "text": "c"},
                    ],
                },
            ],
        )
        end = "<user>a<assistant>b<tool_call>7<tool>8<user>c<assistant>"
        assert prompt_of(server).endswith(end)

    roomy(check)


def test_serial_calls_and_no_calls() -> None:
    async def check(server: TinyServer) -> None:
        says(server, f"{CALL}{CALL}")
        choice = {"type": "auto", "disable_parallel_tool_use": True}
        assert len((await create(server, tools=[TOOL], tool_choice=choice))["content"]) == 1
        message = await create(server, tools=[TOOL], tool_choice={"type": "none"})
        assert message["content"][0]["type"] == "text"
        num_tokens = len(TOKENIZER.encode(CALL[: CALL.index("1}")]))
        message = await create(server, tools=[TOOL], max_tokens=num_tokens)
        assert (message["content"], message["stop_reason"]) == ([], "max_tokens")

    roomy(check)


def test_arguments_that_json_can_not_say() -> None:
    async def check(server: TinyServer) -> None:
        says(server, CALL.replace("1}", r'"\ud800"}'))
        assert (await create(server, tools=[TOOL]))["content"] == []
        events = await stream(server, tools=[TOOL])
        assert events[-1]["type"] == "message_stop"

    roomy(check)


def test_thinking() -> None:
    async def check(server: TinyServer) -> None:
        await create(server, thinking={"type": "disabled"})
        assert prompt_of(server).endswith("</think>\n\n")
        await create(server, thinking={"type": "adaptive"})
        assert prompt_of(server).endswith("<assistant>")

    roomy(check)


def test_a_format_of_the_text() -> None:
    async def check(server: TinyServer) -> None:
        says(server, '{"ok": true}')
        schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}}
        wanted = {"type": "json_schema", "schema": schema}
        message = await create(server, output_config={"format": wanted})
        assert message["content"][0]["text"] == '{"ok": true}'
        assert "boolean" in server.manager.requests[-1].sampling.grammar
        await create(server, output_config={"format": None})
        assert not server.manager.requests[-1].sampling.grammar

    roomy(check)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"output_config": 5}, "output_config"),
        ({"output_config": {"style": "short"}}, "output_config"),
        ({"output_config": {"format": {"type": "json_object"}}}, "output_config.format"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format"),
        ({"output_config": {"effort": "low"}}, "output_config.effort"),
        ({"thread": {"type": "create"}}, "thread"),
        ({"messages": []}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [5]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "messages[0].content[0]",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
        ),
        (
            {"messages": [{"role": "user", "content": [TOOL_USE]}]},
            "messages[0].content[0]",
        ),
        (
            {"messages": [{"role": "assistant", "content": [TOOL_RESULT]}]},
            "messages[0].content[0]",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{**TOOL_RESULT, "content": [TOOL_RESULT]}]}
                ]
            },
            "messages[0].content[0].content[0]",
        ),
        ({"system": [TOOL_USE]}, "system[0]"),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": "x"}]}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0]"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "", "input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{**TOOL, "x": 1}]}, "tools[0].x"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"stop_sequences": ["x"] * 100}, "stop_sequences"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": []}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "any", "name": "f"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "sometimes"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "auto"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "auto", "x": 1}}, "tool_choice"),
        ({"system": 5}, "system"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"mcp_servers": []}, "mcp_servers"),
    ],
)
def test_refused(body: dict[str, Any], param: str) -> None:
    async def check(server: TinyServer) -> None:
        for streams in (False, True):
            response = await server.post(PATH, BODY | body | {"stream": streams})
            assert response.status_code == 400, response.text
            error = response.json()
            assert error["type"] == "error"
            assert error["error"]["type"] == "invalid_request_error"
            assert error["error"]["param"] == param
        assert not server.manager.requests

    roomy(check)


def test_other_failures() -> None:
    async def check(server: TinyServer) -> None:
        response = await server.post(PATH, BODY | {"model": "claude"})
        assert response.status_code == 404
        assert response.json()["error"]["type"] == "not_found_error"
        server.manager.fail_with = "Broken."
        response = await server.post(PATH, BODY)
        assert response.status_code == 500
        assert response.json()["error"] == {"type": "api_error", "message": "Broken."}

    roomy(check)
