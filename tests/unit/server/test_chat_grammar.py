"""Whatever the grammar of a turn allows, the parsers read as what the client asked for."""

import functools
import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.unit.server.grammar_walks import GrammarWalker, tokenizer_with
from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.chat_grammar import ReasoningState
from tokasaurus.server.chat_output import ChatOutputParser
from tokasaurus.server.output_events import (
    ArgumentsPiece,
    CallStart,
    ReasoningPiece,
    TextPiece,
    merged,
)
from tokasaurus.server.output_format import OutputFormat
from tokasaurus.server.reasoning.splitter import ReasoningSplitter
from tokasaurus.server.structured_output import StructuredOutput
from tokasaurus.server.tools.definitions import Tool, checked_tools
from tokasaurus.server.tools.tool_choice import ToolUse, tool_use_of
from tokasaurus.tokenization.chat_template import ChatTemplate

TEMPLATES = {
    "hermes": "tools <tool_call>",
    "hermes, special": "tools <tool_call>",
    "llama3": "tools <|start_header_id|>",
    "mistral, list": "tools [TOOL_CALLS]",
    "mistral, bare": "tools [TOOL_CALLS] [ARGS]",
    "mistral, with ids": "tools [TOOL_CALLS] [CALL_ID] [ARGS]",
    "mistral, as text": "tools [TOOL_CALLS] [ARGS]",
}
TOKENS: dict[str, dict[str, Sequence[str]]] = {
    "hermes": {"plain": ["<tool_call>", "</tool_call>", "<think>", "</think>"]},
    "hermes, special": {"special": ["<tool_call>", "</tool_call>", "<think>", "</think>"]},
    "mistral, list": {"special": ["[TOOL_CALLS]"]},
    "mistral, bare": {"special": ["[TOOL_CALLS]", "[ARGS]"]},
    "mistral, with ids": {"special": ["[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"]},
}
PARAMETERS = {
    "type": "object",
    "properties": {"n": {"$ref": "#/$defs/N"}, "s": {"enum": ["", '"}', "[TOOL_CALLS]"]}},
    "required": ["n"],
    "additionalProperties": False,
    "$defs": {"N": {"enum": [1, 22]}},
}
ANSWER = StructuredOutput(
    json_schema={
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    },
    param="response_format",
)


@functools.cache
def walker_of(kind: str) -> GrammarWalker:
    return GrammarWalker(tokenizer_with(**TOKENS.get(kind, {})))


def format_of(kind: str, reasoning: str = "none") -> OutputFormat:
    template = ChatTemplate(TEMPLATES[kind], {}, origin="a test")
    return OutputFormat.choose(template, reasoning_parser=reasoning)


def tools_of(*names: str, strict: bool = False, parameters: Any = PARAMETERS) -> list[Tool]:
    return checked_tools(
        [
            {
                "type": "function",
                "function": {"name": name, "parameters": parameters, "strict": strict},
            }
            for name in names
        ]
    )


def grammar_of(
    kind: str,
    use: ToolUse,
    answer: StructuredOutput | None = None,
    *,
    reasoning: str = "none",
    state: ReasoningState = "none",
) -> str:
    walker = walker_of(kind)
    grammar = format_of(kind, reasoning).grammar(walker._tokenizer)
    output = grammar.output(answer, use, state)
    assert output is not None
    return output.compiled()


def read(
    kind: str, text: str, use: ToolUse, *, reasoning: str = "none", inside: bool = False
) -> tuple[str, str, list[tuple[str, str]]]:
    """Reasoning, text and calls."""
    output_format = format_of(kind, reasoning)
    marks = output_format.reasoning
    parser = ChatOutputParser(
        marks and ReasoningSplitter(marks, starts_inside=inside),
        output_format.tool_parser_for(use.names) if use.offered else None,
    )
    thoughts, texts, calls = "", "", []
    for event in merged([*parser.push(text), *parser.flush()]):
        match event:
            case ReasoningPiece():
                thoughts += event.text
            case TextPiece():
                texts += event.text
            case CallStart():
                calls.append((event.name, ""))
            case ArgumentsPiece():
                name, arguments = calls[-1]
                calls[-1] = (name, arguments + event.text)
    return thoughts, texts, calls


def assert_right(calls: list[tuple[str, str]], names: set[str]) -> None:
    for name, text in calls:
        assert name in names
        arguments = json.loads(text)
        assert set(arguments) <= {"n", "s"}
        assert arguments["n"] in (1, 22)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_required_calls(kind: str) -> None:
    use = tool_use_of(tools_of("up", "down"), "required", parallel=True)
    grammar = grammar_of(kind, use)
    counts = []
    for seed in range(12):
        text = walker_of(kind).walk(grammar, seed)
        if text is not None:
            _, rest, calls = read(kind, text, use)
            assert rest == ""
            assert_right(calls, {"up", "down"})
            counts.append(len(calls))
    assert min(counts) == 1
    assert max(counts) > 1


@pytest.mark.parametrize("kind", TEMPLATES)
def test_one_call(kind: str) -> None:
    tools = tools_of("up", "down")
    one_of_both = tool_use_of(tools, "required", parallel=False)
    named = tool_use_of(tools, {"type": "function", "function": {"name": "up"}}, parallel=True)
    for use, names in ((one_of_both, {"up", "down"}), (named, {"up"})):
        grammar = grammar_of(kind, use)
        seen = set()
        for seed in range(20):
            text = walker_of(kind).walk(grammar, seed)
            assert text is not None
            _, rest, calls = read(kind, text, use)
            assert rest == ""
            assert len(calls) == 1
            assert_right(calls, names)
            seen.add(calls[0][0])
        assert seen == names


@pytest.mark.parametrize("kind", TEMPLATES)
def test_strict_tools_leave_the_model_its_choice(kind: str) -> None:
    use = tool_use_of(tools_of("up", strict=True), "auto", parallel=True)
    grammar, walker = grammar_of(kind, use), walker_of(kind)
    assert walker.accepts(grammar, "")
    assert walker.accepts(grammar, "Well, { is < a [ brace.\n")
    good = {
        "hermes": '<tool_call>\n{"name": "up", "arguments": {"n": 1}}\n</tool_call>',
        "llama3": '{"name": "up", "parameters": {"n": 1}}',
        "mistral, list": '[TOOL_CALLS][{"name": "up", "arguments": {"n": 1}}]',
        "mistral, bare": '[TOOL_CALLS]up[ARGS]{"n": 1}',
        "mistral, with ids": '[TOOL_CALLS]up[CALL_ID]a1b2c3d4e[ARGS]{"n": 1}',
    }
    text = good.get(kind, good[kind.split(",")[0] if "hermes" in kind else "mistral, bare"])
    assert walker.accepts(grammar, text)
    assert not walker.accepts(grammar, text.replace("1}", "3}"))
    if kind != "llama3":
        assert walker.accepts(grammar, f"I call: {text}")
        assert not walker.accepts(grammar, f"I call: {text.replace('1}', '3}')}")


@pytest.mark.parametrize("kind", ["hermes", "llama3", "mistral, list"])
def test_only_strict_tools_are_checked_when_the_model_chooses(kind: str) -> None:
    tools = [*tools_of("up", strict=True), *tools_of("down", parameters={"not": {}})]
    use = tool_use_of(tools, "auto", parallel=True)
    grammar = grammar_of(kind, use)
    call = {
        "hermes": '<tool_call>\n{"name": "%s", "arguments": {"x": 5}}\n</tool_call>',
        "llama3": '{"name": "%s", "parameters": {"x": 5}}',
        "mistral, list": '[TOOL_CALLS][{"name": "%s", "arguments": {"x": 5}}]',
    }[kind]
    assert walker_of(kind).accepts(grammar, call % "down")
    assert not walker_of(kind).accepts(grammar, call % "up")


def test_an_answer_or_calls() -> None:
    use = tool_use_of(tools_of("up", strict=True), None, parallel=True)
    for kind in TEMPLATES:
        grammar = grammar_of(kind, use, ANSWER)
        found = set()
        for seed in range(20):
            text = walker_of(kind).walk(grammar, seed)
            if text is not None:
                _, rest, calls = read(kind, text, use)
                assert bool(rest) != bool(calls)
                assert_right(calls, {"up"})
                assert not rest or isinstance(json.loads(rest)["ok"], bool)
                found.add(bool(calls))
        assert found == {True, False}


@pytest.mark.parametrize("kind", ["hermes", "hermes, special"])
@pytest.mark.parametrize("state", ["none", "possible", "begun"])
def test_reasoning_comes_first(kind: str, state: ReasoningState) -> None:
    forced = tool_use_of(tools_of("up"), "required", parallel=False)
    call = '<tool_call>\n{"name": "up", "arguments": {"n": 22}}\n</tool_call>'
    walker = walker_of(kind)
    for use, answer, body in (
        (forced, None, call),
        (ToolUse(), ANSWER, '{"ok": true}'),
        (ToolUse(), StructuredOutput(regex="[a-z ]+"), "yes no"),
        (ToolUse(), StructuredOutput(grammar='root ::= "::=" | "x"'), "::="),
        (ToolUse(), StructuredOutput(choice=["<think>", "b"]), "b"),
    ):
        grammar = grammar_of(kind, use, answer, reasoning="think", state=state)
        thought = "Hm < {1}\n</thin" + "</think>\n\n"
        opened = f"<think>{thought}"
        assert walker.accepts(grammar, body) == (state != "begun")
        if state != "begun":
            assert walker.accepts(grammar, f"{opened}{body}") == (state == "possible")
        assert walker.accepts(grammar, f"{thought}{body}") == (state == "begun")
        assert not walker.accepts(grammar, f"{opened}Well")
        text = {"none": body, "possible": opened + body, "begun": thought + body}[state]
        thoughts, rest, calls = read(kind, text, use, reasoning="think", inside=state == "begun")
        assert bool(thoughts) == (state != "none")
        assert (rest, calls) == (("", [("up", '{"n": 22}')]) if use.offered else (body, []))


def test_what_needs_no_grammar_has_none() -> None:
    grammar = format_of("hermes", "think").grammar(walker_of("hermes")._tokenizer)
    use = tool_use_of(tools_of("up"), "auto", parallel=False)
    assert grammar.output(None, use, "possible") is None
    assert grammar.output(None, ToolUse(), "begun") is None
    assert grammar.output(ANSWER, ToolUse(), "none") is ANSWER


BEYOND_ENFORCING = [
    ({"uniqueItems": True}, "uniqueItems"),
    ({"type": "array"}, "object"),
    ({"properties": {"child": {"$ref": "#"}}}, "ref"),
    ({"properties": {"x": {"type": "rhyme"}}}, "rhyme"),
]


@pytest.mark.parametrize(
    ("kind", "parameters", "named"),
    [
        (kind, parameters, named)
        for kind in ("hermes", "mistral, bare")
        for parameters, named in BEYOND_ENFORCING
        # arguments stand alone in the latter, so that references lead where they should
        if (kind, named) != ("mistral, bare", "ref")
    ],
)
def test_the_schema_that_can_not_be_enforced_is_named(
    kind: str, parameters: Any, named: str
) -> None:
    tools = [*tools_of("fine"), *tools_of("other", parameters=parameters, strict=True)]
    use = tool_use_of(tools, "required", parallel=True)
    with pytest.raises(InvalidRequestError, match=named) as caught:
        grammar_of(kind, use)
    assert caught.value.param == "tools[0].function.parameters"
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("parameters", [parameters for parameters, _ in BEYOND_ENFORCING])
def test_forced_tools_that_are_not_strict_take_any_object_then(parameters: Any) -> None:
    def call(name: str, arguments: str) -> str:
        text = f'{{"name": "{name}", "arguments": {arguments}}}'
        return f"<tool_call>\n{text}\n</tool_call>"

    fine, other = tools_of("fine"), tools_of("other", parameters=parameters)
    walker = walker_of("hermes")
    grammar = grammar_of("hermes", tool_use_of([*fine, *other], "required", parallel=False))
    assert walker.accepts(grammar, call("other", '{"anything": [1]}'))
    assert not walker.accepts(grammar, call("other", "[1]"))
    assert not walker.accepts(grammar, call("fine", '{"anything": [1]}'))
