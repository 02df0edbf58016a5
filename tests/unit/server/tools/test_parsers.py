"""Tool calls in the three forms; any cut of a text gives the same events."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tokasaurus.server.output_events import (
    ArgumentsPiece,
    CallStart,
    OutputEvent,
    TextPiece,
    merged,
)
from tokasaurus.server.tools.hermes import HermesParser
from tokasaurus.server.tools.llama3 import Llama3Parser
from tokasaurus.server.tools.mistral import MistralParser
from tokasaurus.server.tools.parser import ToolParser

PARSERS = [HermesParser, Llama3Parser, MistralParser]
NAMES = frozenset({"f", "get_weather"})
WEATHER = '{"city": "Köln \\"}{[\\\\", "days": [1, {"a": 2}]}'


def parsed(parser: type[ToolParser], text: str, cuts: list[int] | None = None) -> list[OutputEvent]:
    machine = parser(NAMES)
    events: list[OutputEvent] = []
    start = 0
    for cut in [*sorted(cuts or []), len(text)]:
        events += machine.push(text[start:cut])
        start = cut
    return merged([*events, *machine.flush()])


def shown(events: list[OutputEvent]) -> list[Any]:
    """Text as it is, calls as (name, arguments)."""
    result: list[Any] = []
    for event in events:
        match event:
            case TextPiece():
                result.append(event.text)
            case CallStart():
                result.append((event.name, ""))
            case ArgumentsPiece():
                name, arguments = result.pop()
                result.append((name, arguments + event.text))
    return result


F = ("f", '{"x": 1}')
COMPACT = ("f", '{"x":1}')
"""Of calls that are written in another order, and can't be passed on as they are."""


@pytest.mark.parametrize(
    ("parser", "text", "expected"),
    [
        (HermesParser, "just text {}  \n", ["just text {}  \n"]),
        (HermesParser, "", []),
        (HermesParser, '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>', [F]),
        (
            HermesParser,
            'Sure.\n\n<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>\n'
            '<tool_call>\n{"name": "get_weather", "arguments": ' + WEATHER + "}\n</tool_call>\n",
            ["Sure.", F, ("get_weather", WEATHER)],
        ),
        (HermesParser, '<tool_call>{"arguments": {"x":1}, "name": "f"}</tool_call>', [COMPACT]),
        (
            HermesParser,
            '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>',
            [COMPACT],
        ),
        (HermesParser, '<tool_call>{"name": "f"}</tool_call>', [("f", "{}")]),
        (
            HermesParser,
            r'<tool_call>{"arguments": {"x": "\ud800"}, "name": "f"}',
            [r'<tool_call>{"arguments": {"x": "\ud800"}, "name": "f"}'],
        ),
        (
            HermesParser,
            r'<tool_call>{"name": "\ud800", "arguments": {}}',
            [r'<tool_call>{"name": "\ud800", "arguments": {}}'],
        ),
        (HermesParser, '<tool_call>{"name": "f", "arguments": null}', [("f", "{}")]),
        (HermesParser, '<tool_call>{"name": "new", "arguments": {}}', [("new", "{}")]),
        (
            HermesParser,
            '<tool_call>{"name": "f", "arguments": {"x": 1}} {"name": "f", "parameters": {"x": 1}}'
            "</tool_call>Done",
            [F, F, "Done"],
        ),
        (HermesParser, '<tool_call>{"name": "f", "arguments": {"x": 1', [("f", '{"x": 1')]),
        (
            HermesParser,
            "a <tool_call> {oops} </tool_call> b",
            ["a <tool_call> {oops} </tool_call> b"],
        ),
        (HermesParser, "a <tool_call> oops", ["a <tool_call> oops"]),
        (HermesParser, 'a <tool_call> {"name": "f", "arg', ['a <tool_call> {"name": "f", "arg']),
        (HermesParser, "a <tool_ca", ["a <tool_ca"]),
        (HermesParser, "<tool_call>  ", ["<tool_call>  "]),
        (Llama3Parser, '{"name": "f", "parameters": {"x": 1}}', [F]),
        (Llama3Parser, '{"type": "function", "name": "f", "parameters": {"x": 1}}', [F]),
        (Llama3Parser, '\n<|python_tag|>{"name": "f", "parameters": {"x": 1}}', [F]),
        (
            Llama3Parser,
            '{"name": "f", "parameters": {"x": 1}}; {"name": "get_weather", "parameters": {}}\n',
            [F, ("get_weather", "{}")],
        ),
        (Llama3Parser, '{"name": "Ann", "parameters": {}}', ['{"name": "Ann", "parameters": {}}']),
        (Llama3Parser, '{"answer": 5} ', ['{"answer": 5} ']),
        (Llama3Parser, '{"name": "f", "parameters"', ['{"name": "f", "parameters"']),
        (
            Llama3Parser,
            'Hi {"name": "f", "parameters": {}}',
            ['Hi {"name": "f", "parameters": {}}'],
        ),
        (Llama3Parser, "Hi <|python_tag|>f.call(x=1)", ["Hi <|python_tag|>f.call(x=1)"]),
        (Llama3Parser, 'Hi <|python_tag|>{"name": "f", "parameters": {"x": 1}}', ["Hi", F]),
        (MistralParser, '[TOOL_CALLS][{"name": "f", "arguments": {"x": 1}}]', [F]),
        (MistralParser, '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}, "id": "a]}"}]', [F]),
        (
            MistralParser,
            'Ok [TOOL_CALLS] [ {"name": "f", "arguments": {"x": 1}},'
            ' {"arguments": {}, "name": "f"}]',
            ["Ok", F, ("f", "{}")],
        ),
        (MistralParser, '[TOOL_CALLS]f[ARGS]{"x": 1}', [F]),
        (MistralParser, '[TOOL_CALLS]f[CALL_ID]12345[ARGS]{"x": 1}[TOOL_CALLS]f{"x": 1}', [F, F]),
        (MistralParser, '[TOOL_CALLS]{"name": "f", "arguments": {"x": 1}} then', [F, " then"]),
        (MistralParser, "[TOOL_CALLS]no call", ["[TOOL_CALLS]no call"]),
        (MistralParser, "[TOOL_CALLS][1, 2]", ["[TOOL_CALLS][1, 2]"]),
        (MistralParser, "[TOOL_CALLS]" + "x" * 300 + "{}", ["[TOOL_CALLS]" + "x" * 300 + "{}"]),
        (MistralParser, "a [TOOL_", ["a [TOOL_"]),
    ],
)
def test_forms(parser: type[ToolParser], text: str, expected: list[Any]) -> None:
    assert shown(parsed(parser, text)) == expected
    assert shown(parsed(parser, text, list(range(len(text))))) == expected


FRAGMENTS = [
    "<tool_call>",
    "</tool_call>",
    "<|python_tag|>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    '{"name": "f", "arguments": {"x": 1}}',
    '{"name": "zzz", "parameters": ' + WEATHER + "}",
    '{"arguments": {}, "name": "get_weather"}',
    '{"name": "f", "arguments": "{}"}',
    '{"name": "',
    '", "arguments": ',
    "get_weather",
    *' \n{}[]",;:\\<a',
]
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)


@pytest.mark.parametrize("parser", PARSERS)
@settings(max_examples=examples(120, searching=600))
@given(text=TEXTS, data=st.data())
def test_any_cut_gives_the_same(parser: type[ToolParser], text: str, data: st.DataObject) -> None:
    whole = parsed(parser, text)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=30))
    assert parsed(parser, text, cuts) == whole
    assert parsed(parser, text, list(range(len(text)))) == whole


@pytest.mark.parametrize("parser", PARSERS)
@given(text=st.text(alphabet="ab <[{}]\n", max_size=40))
def test_text_without_calls_is_untouched(parser: type[ToolParser], text: str) -> None:
    assert parsed(parser, text) == merged([TextPiece(text)])


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(max_examples=examples(40, searching=200))
@given(
    calls=st.lists(st.dictionaries(st.text(max_size=8), JSON_VALUES), min_size=1, max_size=3),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 2]),
)
def test_arguments_arrive_exactly(
    calls: list[dict[str, Any]], ascii_only: bool, indent: int | None
) -> None:
    def dump(value: object) -> str:
        return json.dumps(value, ensure_ascii=ascii_only, indent=indent)

    bodies = [dump({"name": "f", "arguments": arguments}) for arguments in calls]
    texts = {
        HermesParser: "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies),
        Llama3Parser: "; ".join(bodies),
        MistralParser: f"[TOOL_CALLS][{', '.join(bodies)}]",
    }
    for parser, text in texts.items():
        found = shown(parsed(parser, text, list(range(0, len(text), 3))))
        assert [name for name, _ in found] == ["f"] * len(calls)
        assert [json.loads(arguments) for _, arguments in found] == calls


def test_arguments_stream() -> None:
    machine = HermesParser(NAMES)
    machine.push('<tool_call>{"name": "f", "argum')
    assert machine.push('ents": {"x"') == [CallStart("f"), ArgumentsPiece('{"x"')]
    assert machine.push(": 1") == [ArgumentsPiece(": 1")]
