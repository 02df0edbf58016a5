"""/v1/responses as the OpenAI SDK knows it."""

from typing import Any

import openai
import pytest
from openai.types.responses import Response

from tests.unit.server.tiny_server import ANSWER, ANSWER_IDS, TOKENIZER, TinyServer, run
from tests.unit.server.tool_calls import CALL, QWEN, prompt_of, says, sdk

PATH = "/v1/responses"
CALL_ITEM = {"type": "function_call", "call_id": "x", "name": "f", "arguments": "{}"}
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}


def roomy(check: Any, **options: Any) -> None:
    run(check, **{"template": QWEN, "max_model_len": 2048} | options)


async def create(server: TinyServer, given: Any = "Hi", **options: Any) -> Response:
    async with sdk(server) as client:
        return await client.responses.create(model="tiny", input=given, **options)


def without_ids(response: Response) -> dict[str, Any]:
    shown = response.model_dump(exclude={"id", "created_at", "completed_at"})
    for item in shown["output"]:
        item["id"] = item["call_id"] = ""
    return shown


def test_whole_answer() -> None:
    async def check(server: TinyServer) -> None:
        response = await create(
            server, instructions="Be nice.", temperature=0.5, top_p=0.75, metadata={"a": "b"}
        )
        assert response.output_text == ANSWER
        assert (response.status, response.object, response.model) == (
            "completed",
            "response",
            "tiny",
        )
        assert response.id.startswith("resp_")
        assert response.metadata == {"a": "b"}
        assert response.usage is not None
        assert response.usage.output_tokens == len(ANSWER_IDS)
        assert response.usage.input_tokens_details.cached_tokens == 4
        assert prompt_of(server) == "<system>Be nice.<user>Hi<assistant>"
        sampling = server.manager.requests[0].sampling
        assert (sampling.temperature, sampling.top_p) == (0.5, 0.75)
        response = await create(server, max_output_tokens=2)
        assert response.status == "incomplete"
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == "max_output_tokens"
        assert response.output[0].status == "incomplete"  # type: ignore[union-attr]

    roomy(check)


def test_conversations_go_on() -> None:
    async def check(server: TinyServer) -> None:
        says(server, f"Wait.\n{CALL}")
        first = await create(server, instructions="One.", tools=[TOOL])
        _, call = first.output
        assert call.type == "function_call"
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "8"}
        says(server, "<think>Hm</think>Nine")
        second = await create(
            server, [result], previous_response_id=first.id, instructions="Two.", store=True
        )
        assert (
            prompt_of(server)
            == "<system>Two.<user>Hi<assistant>Wait.<tool_call>1<tool>8<assistant>"
        )
        assert second.previous_response_id == first.id
        assert second.output[0].content[0].text == "Hm"  # type: ignore[union-attr,index]
        await create(server, "More", previous_response_id=second.id)
        assert prompt_of(server).endswith("<tool>8<assistant>Nine<user>More<assistant>")

    roomy(check)


def test_retrieve_and_delete() -> None:
    async def check(server: TinyServer) -> None:
        async with sdk(server) as client:
            created = await create(server)
            unstored = await create(server, store=False)
            assert await client.responses.retrieve(created.id) == created
            await client.responses.delete(created.id)
            for gone in (created.id, unstored.id, "resp_x"):
                with pytest.raises(openai.NotFoundError):
                    await client.responses.retrieve(gone)
                with pytest.raises(openai.NotFoundError):
                    await client.responses.delete(gone)
                with pytest.raises(openai.NotFoundError) as caught:
                    await create(server, previous_response_id=gone)
                assert caught.value.param == "previous_response_id"
            response = await server.http.get(f"{PATH}/{created.id}?stream=true")
            assert response.status_code == 400

    roomy(check)


@pytest.mark.parametrize("tokens_per_tick", [1, 7, 1000])
def test_streams_add_up_to_the_whole(tokens_per_tick: int) -> None:
    async def check(server: TinyServer) -> None:
        server.manager.tokens_per_tick = tokens_per_tick
        for text in (ANSWER, f"<think>Hm.</think>Let me see.\n{CALL}\n{CALL}\nDone", "", CALL):
            says(server, text)
            whole = await create(server, tools=[TOOL])
            async with sdk(server) as client:
                manager = client.responses.stream(model="tiny", input="Hi", tools=[TOOL])
                async with manager as stream:
                    events = [event async for event in stream]
                    final = await stream.get_final_response()
            assert [event.sequence_number for event in events] == list(range(len(events)))
            assert events[0].type == "response.created"
            assert events[-1].type == "response.completed"
            async with sdk(server) as client:
                stored = await client.responses.retrieve(final.id)
            Response.model_validate(stored.to_dict())
            assert without_ids(stored) == without_ids(whole)
            assert [item.id for item in final.output] == [item.id for item in stored.output]
            assert (final.output_text, final.usage) == (whole.output_text, whole.usage)

    roomy(check)


def test_streamed_events() -> None:
    async def check(server: TinyServer) -> None:
        says(server, f"<think>Hm.</think>Ok {CALL}")
        server.manager.tokens_per_tick = 1000
        async with sdk(server) as client:
            stream = await client.responses.create(
                model="tiny", input="Hi", tools=[TOOL], stream=True
            )
            events = [event async for event in stream]
        assert [event.type.removeprefix("response.") for event in events] == [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "reasoning_text.delta",
            "reasoning_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "completed",
        ]
        added = events[2].item
        assert (added.status, added.content) == ("in_progress", [])

    roomy(check)


def test_failure_in_the_middle_of_a_stream() -> None:
    async def check(server: TinyServer) -> None:
        server.manager.fail_with = "The worker died."
        async with sdk(server) as client:
            stream = await client.responses.create(model="tiny", input="Hi", stream=True)
            events = [event async for event in stream]
        assert events[-1].type == "response.failed"
        assert events[-1].response.error.message == "The worker died."
        with pytest.raises(openai.InternalServerError):
            await create(server)

    roomy(check)


def test_reasoning_tokens_are_counted() -> None:
    async def check(server: TinyServer) -> None:
        says(server, "<think>Hm, so.</think>Ok")
        response = await create(server)
        assert response.usage is not None
        counted = response.usage.output_tokens_details.reasoning_tokens
        assert counted == len(TOKENIZER.encode("Hm, so."))

    roomy(check)


def test_input_items() -> None:
    async def check(server: TinyServer) -> None:
        await create(
            server,
            [
                {"role": "developer", "content": "D"},
                {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                {"type": "reasoning", "id": "r", "summary": []},
                {
                    "type": "message",
                    "id": "m",
                    "status": "completed",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "b", "annotations": []}],
                },
                {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"x": 2}'},
                {"type": "function_call", "call_id": "2", "name": "f", "arguments": '{"x": 3}'},
                {
                    "type": "function_call_output",
                    "call_id": "1",
                    "output": [{"type": "input_text", "text": "c"}],
                },
            ],
        )
        expected = "<system>D<user>a<assistant>b<tool_call>2<tool_call>3<tool>c<assistant>"
        assert prompt_of(server) == expected

    roomy(check)


def test_calls_that_were_cut_off_do_not_come_back() -> None:
    async def check(server: TinyServer) -> None:
        says(server, CALL)
        num_tokens = len(TOKENIZER.encode(CALL[: CALL.index("1}")]))
        first = await create(server, tools=[TOOL], max_output_tokens=num_tokens)
        assert first.output[0].status == "incomplete"  # type: ignore[union-attr]
        await create(server, "Go on", previous_response_id=first.id)
        assert prompt_of(server) == "<user>Hi<user>Go on<assistant>"

    roomy(check)


def test_a_model_that_says_nothing() -> None:
    async def check(server: TinyServer) -> None:
        says(server, "")
        response = await create(server)
        assert response.output_text == ""
        assert [item.type for item in response.output] == ["message"]
        assert response.status == "completed"

    roomy(check)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0]",
        ),
        ({"input": [{"type": "function_call", "call_id": "x"}]}, "input[0].name"),
        ({"input": [{**CALL_ITEM, "arguments": "{"}]}, "input[0].arguments"),
        ({"input": "x" * 10_000}, "input"),
        ({"max_output_tokens": 2**40}, "max_output_tokens"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 5}, "temperature"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [{**TOOL, "strict": 1}]}, "tools[0].strict"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "mcp"}}, "tool_choice"),
        ({"background": True}, "background"),
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"reasoning": {"effort": "low"}}, "reasoning.effort"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"reasoning": {"mode": "x"}}, "reasoning"),
        ({"reasoning": "low"}, "reasoning"),
        ({"text": "short"}, "text"),
        ({"text": {"style": "short"}}, "text"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}},
            "text.format",
        ),
        ({"truncation": "auto"}, "truncation"),
        ({"temprature": 1}, "temprature"),
        ({"n": 2}, "n"),
    ],
)
def test_refused(body: dict[str, Any], param: str) -> None:
    async def check(server: TinyServer) -> None:
        for streams in (False, True):
            error = await server.error(PATH, {"input": "Hi", "stream": streams} | body)
            assert error["param"] == param
        assert not server.manager.requests

    roomy(check)


def test_neutral_fields() -> None:
    async def check(server: TinyServer) -> None:
        await create(
            server,
            text={"format": {"type": "text"}},
            truncation="disabled",
            reasoning={},
            include=[],
            background=False,
            user="me",
            service_tier="auto",
        )

    roomy(check)
