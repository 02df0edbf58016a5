"""Reads one tool call, a JSON object with a name and arguments, from text that arrives in pieces.

Arguments are passed on as they arrive if the name comes before them, which is how models write.
"""

import re
from collections.abc import Callable
from typing import Any

import msgspec

from tokasaurus.server.output_events import ArgumentsPiece, CallStart, OutputEvent

_MAX_HEAD_CHARACTERS = 1024
_STRING = r'"((?:[^"\\]|\\.)*)"'
_HEAD = re.compile(
    r'\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*'
    + _STRING
    + r'\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_STRUCTURE = re.compile(r'["\\{}\[\]]')


class JsonScanner:
    """Follows brackets and strings through JSON; what stands between them is not looked at."""

    def __init__(self) -> None:
        self.depth = 0
        self._in_string = False
        self._escaped_at = -1
        self._num_read = 0

    def read(self, text: str, *, until_depth: int) -> int | None:
        """Goes on until a bracket closes to that depth: the index after it; None if none does."""
        for match in _STRUCTURE.finditer(text):
            position, character = self._num_read + match.start(), match.group()
            if self._in_string:
                if position == self._escaped_at:
                    continue
                if character == "\\":
                    self._escaped_at = position + 1
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self.depth += 1
            elif character in "}]":
                self.depth -= 1
                if self.depth <= until_depth:
                    self._num_read += match.end()
                    return match.end()
        self._num_read += len(text)
        return None


class CallReader:
    """Fed from the object's opening brace on, until `push` returns what comes after it."""

    def __init__(self, emit: Callable[[OutputEvent], None], accepts: Callable[[str], bool]) -> None:
        """`accepts`: whether a name is a tool's."""
        self._emit = emit
        self._accepts = accepts
        self._scanner = JsonScanner()
        self._head = ""
        self._is_streaming = False
        self._in_arguments = False
        self._may_stream = True
        self.refused: str | None = None
        """The text read, if it turned out to be no call; nothing was emitted then."""

    def push(self, text: str) -> str | None:
        """None if the object goes on, else the text after it."""
        return self._read_call(text) if self._is_streaming else self._read_head(text)

    def close(self) -> None:
        """No more text comes, and the object has not ended."""
        if not self._is_streaming:
            self.refused = self._head

    def _read_head(self, text: str) -> str | None:
        num_before = len(self._head)
        self._head += text
        if self._may_stream and (found := _HEAD.match(self._head, 0, _MAX_HEAD_CHARACTERS)):
            name = _string(found[1])
            if name is not None and self._accepts(name):
                self._emit(CallStart(name))
                self._is_streaming = self._in_arguments = True
                self._scanner = JsonScanner()
                self._scanner.read(found.group(), until_depth=0)
                return self._read_call(self._head[found.end() :])
            self._may_stream = False
        end = self._scanner.read(text, until_depth=0)
        if end is None:
            return None
        whole = self._head[: num_before + end]
        if not self._emit_whole(whole):
            self.refused = whole
        return text[end:]

    def _read_call(self, text: str) -> str | None:
        if self._in_arguments:
            end = self._scanner.read(text, until_depth=1)
            self._emit(ArgumentsPiece(text if end is None else text[:end]))
            if end is None:
                return None
            self._in_arguments = False
            text = text[end:]
        end = self._scanner.read(text, until_depth=0)
        return None if end is None else text[end:]

    def _emit_whole(self, text: str) -> bool:
        """Of a call in another order, or whose arguments are no object."""
        call = _parsed(text)
        name = call.get("name") if isinstance(call, dict) else None
        if not isinstance(name, str) or not self._accepts(name):
            return False
        arguments = call.get("arguments", call.get("parameters"))
        if isinstance(arguments, str):
            arguments = _parsed(arguments)
        if not isinstance(arguments, dict | None):
            return False
        self._emit(CallStart(name))
        self._emit(ArgumentsPiece(msgspec.json.encode(arguments or {}).decode()))
        return True


def _string(body: str) -> str | None:
    value = _parsed(f'"{body}"')
    return value if isinstance(value, str) else None


def _parsed(text: str) -> Any:
    """None for what is not JSON, which has neither NaN nor halves of surrogate pairs."""
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return None
