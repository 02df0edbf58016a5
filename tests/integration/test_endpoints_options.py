"""Options that say how a model marks tools and reasoning reach the server process."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.integration.conftest import SMALL
from tests.integration.engine_process import EngineProcess

TEMPLATE = (
    "{% if tools %}{% for t in tools %}{{ t | tojson }}\n{% endfor %}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n<think>\n{% if not thinks %}\n</think>\n\n{% endif %}"
)
STRICT_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {
                "unit": {"enum": ["C", "F"]},
                "degrees": {"type": "integer", "minimum": -99, "maximum": 99},
            },
            "required": ["unit"],
            "additionalProperties": False,
        },
    },
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    template: Path = tmp_path_factory.mktemp("template") / "own.jinja"
    template.write_text(TEMPLATE)
    options = (f"chat_template={template}", "tool_parser=hermes", "reasoning_parser=think")
    with EngineProcess((*SMALL, *options)) as process:
        process.wait_until_ready()
        with openai.OpenAI(base_url=f"{process.url}/v1", api_key="none", max_retries=0) as client:
            yield client


def ask(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "What is 2 + 3?"}],
        **{"temperature": 0, "max_tokens": 12} | options,  # type: ignore[call-overload]
    )


def test_tools_reach_the_prompt(client: openai.OpenAI) -> None:
    def num_prompt_tokens(**options: Any) -> int:
        return ask(client, **options).usage.prompt_tokens

    assert num_prompt_tokens(tools=[TOOL]) > num_prompt_tokens()
    assert num_prompt_tokens(tools=[TOOL], tool_choice="none") == num_prompt_tokens()


def arguments_of(text: str) -> dict[str, Any]:
    arguments = json.loads(text)
    assert set(arguments) <= {"unit", "degrees"}
    assert arguments["unit"] in ("C", "F")
    return arguments


FORCED: dict[str, Any] = {"temperature": 1.0, "max_tokens": 300, "tools": [STRICT_TOOL, TOOL]}


def test_forced_calls(client: openai.OpenAI) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    reply = ask(client, **FORCED | {"tool_choice": named, "n": 6, "seed": 3})
    num_complete = 0
    for choice in reply.choices:
        [call] = choice.message.tool_calls
        assert call.function.name == "weather"
        if choice.finish_reason == "stop":
            arguments_of(call.function.arguments)
            num_complete += 1
    assert num_complete > 3
    for parallel in (True, False):
        reply = ask(
            client,
            **FORCED
            | {"tool_choice": "required", "parallel_tool_calls": parallel, "n": 6, "seed": 4},
        )
        for choice in reply.choices:
            calls = choice.message.tool_calls
            assert calls
            assert parallel or len(calls) == 1
            assert choice.finish_reason in ("tool_calls", "length")


def test_streamed_forced_calls_equal_whole_ones(client: openai.OpenAI) -> None:
    options = FORCED | {"tool_choice": "required", "seed": 5}
    whole = ask(client, **options).choices[0]
    chunks = list(ask(client, **options, stream=True))
    pieces = [call for c in chunks for call in c.choices[0].delta.tool_calls or ()]
    for index, call in enumerate(whole.message.tool_calls):
        own = [piece.function for piece in pieces if piece.index == index]
        assert "".join(piece.name or "" for piece in own) == call.function.name
        assert "".join(piece.arguments or "" for piece in own) == call.function.arguments
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason


def test_an_answer_in_the_format_or_a_strict_call(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    answer = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    options = {"tools": [STRICT_TOOL], "response_format": answer, "max_tokens": 300}
    reply = ask(client, **options, n=8, seed=1, temperature=1.0)
    reasons = {choice.finish_reason for choice in reply.choices}
    assert reasons & {"stop", "tool_calls"}
    for choice in reply.choices:
        if choice.finish_reason == "tool_calls":
            assert choice.message.content is None
            for call in choice.message.tool_calls:
                arguments_of(call.function.arguments)
        elif choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content)["ok"], bool)


def test_forced_calls_of_the_other_endpoints(client: openai.OpenAI) -> None:
    function = STRICT_TOOL["function"]
    response = client.responses.create(
        model="demo",
        input="Hi",
        tools=[{"type": "function", **function}],
        tool_choice={"type": "function", "name": "weather"},
        max_output_tokens=300,
    )
    [item] = response.output
    assert item.type == "function_call"
    if response.status == "completed":
        arguments_of(item.arguments)
    message = client.post(
        "/messages",
        body={
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 300,
            "tools": [{"name": "weather", "input_schema": function["parameters"]}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        },
        cast_to=dict[str, Any],
    )
    if message["stop_reason"] == "tool_use":
        [block] = message["content"]
        arguments_of(json.dumps(block["input"]))


def test_the_text_format_of_a_response(client: openai.OpenAI) -> None:
    text_format = {
        "type": "json_schema",
        "name": "weather",
        "schema": STRICT_TOOL["function"]["parameters"],
        "strict": True,
    }
    response = client.responses.create(
        model="demo", input="Hi", text={"format": text_format}, max_output_tokens=300
    )
    assert response.text.format.type == "json_schema"
    if response.status == "completed":
        arguments_of(response.output_text)


def test_reasoning_that_the_prompt_opened(client: openai.OpenAI) -> None:
    extra = {"chat_template_kwargs": {"thinks": True}}
    message = ask(client, extra_body=extra).choices[0].message
    assert message.content == ""
    assert message.reasoning_content
    answer = ask(client).choices[0].message
    assert answer.content
    assert not hasattr(answer, "reasoning_content")
