"""Tool calls as grammars: in a model family's own form, with arguments that match the schemas."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.grammar_writing import json_value, literal, refused
from tokasaurus.server.structured_output import StructuredOutput
from tokasaurus.server.tools.definitions import Tool
from tokasaurus.tokenization.tokenizer import Tokenizer

Pieces = tuple[str | re.Pattern[str], ...]
"""Texts and regular expressions. A text that is the name of a special token stands for that."""
_ANY_OBJECT = {"type": "object"}
_DEFINITIONS = ("$defs", "definitions")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSyntax:
    """How a model family writes calls."""

    begin: Pieces = ()
    """Before the first call. Its first piece, if any, never stands in text that is no call."""
    separator: Pieces
    """Between two calls."""
    end: Pieces = ()
    """After the last call."""
    arguments_key: str = "arguments"
    """A call is an object with the tool's name and, under this key, its arguments ..."""
    after_name: Pieces | None = None
    """... but where this is given, it is the bare name, these pieces, and the arguments."""


class CallGrammar:
    """Writes the rules of some tools' calls."""

    def __init__(self, syntax: CallSyntax, tokenizer: Tokenizer) -> None:
        self._syntax = syntax
        self._tokenizer = tokenizer

    def rules(
        self, tools: Sequence[Tool], *, checked: frozenset[str], max_calls: int | None
    ) -> str:
        """`calls`: one to `max_calls` (None: any number) calls of the tools, and nothing else.

        The arguments of the `checked` tools match their schemas; those of others are objects, and
        so are those of tools that are not strict where their schemas can't be enforced. Raises
        InvalidRequestError, naming tool and keyword, for strict tools' schemas of that kind.
        """
        begin, _ = self._rules_of_calls()
        return "\n".join([begin, *self._rules_within(tools, checked, max_calls)])

    def rules_after_text(
        self, tools: Sequence[Tool], *, checked: frozenset[str], max_calls: int | None
    ) -> str:
        """`text_and_calls`: a text that announces no call and then, perhaps, calls as above."""
        _, begin = self._rules_of_calls()
        return "\n".join([begin, *self._rules_within(tools, checked, max_calls)])

    def _rules_of_calls(self) -> tuple[str, str]:
        begin, end = self._syntax.begin, self._written(self._syntax.end)
        alone = f"calls: {self._written(begin)} several_calls {end}"
        if not begin:
            return alone, (
                f"text_and_calls: TEXT_BUT_NO_CALL? | several_calls {end}\n"
                "TEXT_BUT_NO_CALL: /\\s*[^{\\s](?s:.*)/"
            )
        marker, *rest = begin
        assert isinstance(marker, str), "a marker is a text"
        after = f"{self._written(rest)} several_calls {end}"
        return alone, (
            f"text_and_calls: CALL_FREE_TEXT? | text_up_to_call {after}\n"
            "CALL_FREE_TEXT: /(?s:.+)/\n"
            f"{text_up_to('text_up_to_call', marker, self._tokenizer)}"
        )

    def _rules_within(
        self, tools: Sequence[Tool], checked: frozenset[str], max_calls: int | None
    ) -> Iterator[str]:
        more = "" if max_calls is None else str(max_calls - 1)
        separator = self._written(self._syntax.separator)
        repeated = f" ({separator} call){{0,{more}}}" if max_calls != 1 else ""
        yield f"several_calls: call{repeated}"
        yield f"call: {' | '.join(f'call_{i}' for i in range(len(tools)))}"
        for i, tool in enumerate(tools):
            yield f"call_{i}: {self._call(tool, is_checked=tool.name in checked)}"

    def _call(self, tool: Tool, *, is_checked: bool) -> str:
        if is_checked and tool.is_strict:
            return self._call_with(tool, tool.parameters)
        if is_checked:
            with contextlib.suppress(InvalidRequestError):
                return self._call_with(tool, tool.parameters)
        return self._call_with(tool, _ANY_OBJECT)

    def _call_with(self, tool: Tool, parameters: Mapping[str, Any]) -> str:
        syntax, param = self._syntax, tool.parameters_param
        if parameters.get("type", "object") != "object":
            raise refused(param, "arguments are always an object")
        if syntax.after_name is not None:
            schema: dict[str, Any] = {"type": "object", **parameters}
            StructuredOutput(json_schema=schema, param=param)
            pieces = self._written((tool.name, *syntax.after_name))
            return f"{pieces} {json_value(schema, param)}"
        schema = call_schema(tool.name, parameters, arguments_key=syntax.arguments_key, param=param)
        StructuredOutput(json_schema=schema, param=param)
        return json_value(schema, param)

    def _written(self, pieces: Sequence[str | re.Pattern[str]]) -> str:
        return " ".join(map(self._piece, pieces))

    def _piece(self, piece: str | re.Pattern[str]) -> str:
        if isinstance(piece, re.Pattern):
            return f"/{piece.pattern}/"
        return mark(piece, self._tokenizer)


def mark(text: str, tokenizer: Tokenizer) -> str:
    """The text, or the special token of that name."""
    token_id = tokenizer.token_id(text)
    return f"<[{token_id}]>" if token_id in tokenizer.special_token_ids else literal(text)


def text_up_to(rule: str, end: str, tokenizer: Tokenizer) -> str:
    """The rule of a text of any length that `end`, which is part of it, ends."""
    if tokenizer.token_id(end) in tokenizer.special_token_ids:
        return f"{rule}: /(?s:.*)/ {mark(end, tokenizer)}"
    return f"{rule}[suffix={literal(end)}]: /(?s:.*)/"


def call_schema(
    name: str, parameters: Mapping[str, Any], *, arguments_key: str, param: str
) -> dict[str, Any]:
    """The schema of a call as most models write it: `{"name": ..., "arguments": {...}}`.

    Definitions move to the top, where references look for them.
    """
    arguments = {"type": "object", **parameters}
    definitions = {key: arguments.pop(key) for key in _DEFINITIONS if key in arguments}
    astray = next((ref for ref in _references(arguments, definitions) if _is_astray(ref)), None)
    if astray is not None:
        raise refused(param, f"'$ref' may only lead to '$defs', not to {astray[:80]!r}")
    return {
        "type": "object",
        "properties": {"name": {"const": name}, arguments_key: arguments},
        "required": ["name", arguments_key],
        "additionalProperties": False,
        **definitions,
    }


def _references(*values: Any) -> Iterator[str]:
    """Every `$ref` somewhere in these."""
    pending = list(values)
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        elif isinstance(value, Mapping):
            if isinstance(ref := value.get("$ref"), str):
                yield ref
            pending += value.values()


def _is_astray(reference: str) -> bool:
    return not reference.startswith(tuple(f"#/{key}/" for key in _DEFINITIONS))
