"""Mistral: [TOOL_CALLS] before a JSON list of calls, or before each name and its arguments.

The list is [{"name": ..., "arguments": {...}}, ...]; newer tokenizers write name[ARGS]{...} or
name{...}.
"""

import re

from tokasaurus.server.output_events import ArgumentsPiece, CallStart
from tokasaurus.server.tools.call_grammar import CallSyntax
from tokasaurus.server.tools.call_reading import JsonScanner
from tokasaurus.server.tools.parser import ToolParser
from tokasaurus.tokenization.chat_template import ChatTemplate

_MAX_HEAD_CHARACTERS = 256
_CALL_ID = re.compile("[A-Za-z0-9]{9}")
_HEAD = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\][\w-]*)?\s*(?:\[ARGS\])?\s*")


class MistralParser(ToolParser):
    """All three forms, told apart by what follows the marker."""

    marker = "[TOOL_CALLS]"
    special_tokens = (marker, "[ARGS]", "[CALL_ID]")

    @classmethod
    def call_syntax(cls, template: ChatTemplate) -> CallSyntax:
        if not template.mentions("[ARGS]"):
            return CallSyntax(begin=(cls.marker, "["), separator=(", ",), end=("]",))
        numbered = ("[CALL_ID]", _CALL_ID) if template.mentions("[CALL_ID]") else ()
        return CallSyntax(
            begin=(cls.marker,), separator=(cls.marker,), after_name=(*numbered, "[ARGS]")
        )

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__(names)
        self._scanner = JsonScanner()
        self._in_list = False

    def _after_marker(self, is_last: bool) -> bool:
        stripped = self._buffer.lstrip()
        if not stripped and not is_last:
            return False
        if stripped.startswith(("[", "{")):
            self._in_list = stripped[0] == "["
            if self._in_list:
                self._announced += self._buffer[: len(self._buffer) - len(stripped) + 1]
                self._buffer = stripped[1:]
            self._state = self._before_call
            return True
        return self._read_head(is_last)

    def _before_call(self, is_last: bool) -> bool:
        stripped = self._buffer.lstrip()
        if stripped.startswith("{"):
            self._announced += self._buffer[: -len(stripped)]
            self._buffer = stripped
            return self._begin_call()
        if not stripped and not is_last:
            return False
        return self._take_as_text()

    def _after_call(self, is_last: bool) -> bool:
        if self._in_list:
            self._buffer = self._buffer.lstrip()
            if not self._buffer and not is_last:
                return False
            if self._buffer.startswith(","):
                self._buffer = self._buffer[1:]
                self._announced = ","
                self._state = self._before_call
                return True
            self._buffer = self._buffer.removeprefix("]")
        self._state = self._in_text
        return True

    def _read_head(self, is_last: bool) -> bool:
        brace = self._buffer.find("{", 0, _MAX_HEAD_CHARACTERS)
        if brace < 0:
            if len(self._buffer) < _MAX_HEAD_CHARACTERS and not is_last:
                return False
            return self._take_as_text()
        found = _HEAD.fullmatch(self._buffer, 0, brace)
        if found is None:
            return self._take_as_text()
        self._add_call_event(CallStart(found[1]))
        self._buffer = self._buffer[brace:]
        self._scanner = JsonScanner()
        self._in_list = False
        self._announced = ""
        self._state = self._in_arguments
        return True

    def _in_arguments(self, is_last: bool) -> bool:  # noqa: ARG002 - nothing is held back
        text = self._buffer
        end = self._scanner.read(text, until_depth=0)
        self._add_call_event(ArgumentsPiece(text if end is None else text[:end]))
        self._buffer = "" if end is None else text[end:]
        if end is None:
            return False
        self._state = self._in_text
        return True
