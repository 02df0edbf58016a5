"""Llama 3: {"name": ..., "parameters": {...}} as the whole answer, or after <|python_tag|>.

Several calls are separated by semicolons, commas or line breaks.
"""

from tokasaurus.server.tools.call_grammar import CallSyntax
from tokasaurus.server.tools.parser import ToolParser, awaits
from tokasaurus.tokenization.chat_template import ChatTemplate


class Llama3Parser(ToolParser):
    """Any answer may be JSON, so only objects that name an offered tool are calls."""

    marker = "<|python_tag|>"
    special_tokens = (marker,)

    @classmethod
    def call_syntax(cls, template: ChatTemplate) -> CallSyntax:  # noqa: ARG003 - there is one only
        return CallSyntax(separator=("; ",), arguments_key="parameters")

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__(names)
        self._state = self._at_start

    def _accepts(self, name: str) -> bool:
        return name in self._names

    def _at_start(self, is_last: bool) -> bool:
        stripped = self._buffer.lstrip()
        if awaits(stripped, self.marker) and not is_last:
            return False
        if stripped.startswith("{"):
            return self._after_marker(is_last)
        self._state = self._in_text
        return True

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
        stripped = self._buffer.lstrip().lstrip(";, \n\t")
        if not stripped and not is_last:
            return False
        if stripped.startswith("{"):
            self._announced = self._buffer[: -len(stripped)]
            self._buffer = stripped
            return self._begin_call()
        self._state = self._in_text
        return True
