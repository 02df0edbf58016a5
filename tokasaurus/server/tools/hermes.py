"""Hermes and Qwen: <tool_call>{"name": ..., "arguments": {...}}</tool_call>, once per call."""

from tokasaurus.server.tools.call_grammar import CallSyntax
from tokasaurus.server.tools.parser import ToolParser, awaits
from tokasaurus.tokenization.chat_template import ChatTemplate

_CLOSING = "</tool_call>"


class HermesParser(ToolParser):
    """Several objects within one pair of tags, and a missing closing tag, are understood."""

    marker = "<tool_call>"
    special_tokens = (marker, _CLOSING)

    @classmethod
    def call_syntax(cls, template: ChatTemplate) -> CallSyntax:  # noqa: ARG003 - there is one only
        return CallSyntax(
            begin=(cls.marker, "\n"),
            separator=("\n", _CLOSING, "\n", cls.marker, "\n"),
            end=("\n", _CLOSING),
        )

    def _after_marker(self, is_last: bool) -> bool:
        stripped = self._buffer.lstrip()
        if stripped.startswith("{"):
            self._announced += self._buffer[: -len(stripped)]
            self._buffer = stripped
            return self._begin_call()
        if not stripped and not is_last:
            return False
        return self._take_as_text()

    def _after_call(self, is_last: bool) -> bool:
        self._buffer = self._buffer.lstrip()
        if self._buffer.startswith("{"):
            return self._begin_call()
        if awaits(self._buffer, _CLOSING) and not is_last:
            return False
        self._buffer = self._buffer.removeprefix(_CLOSING)
        self._state = self._in_text
        return True
