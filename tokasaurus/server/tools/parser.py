"""Finds tool calls in a model's text, which arrives in pieces; the rest of it stays text.

What comes out, joined, does not depend on how the text was cut: a decision is taken only when no
later text could change it. White space between calls, and between text and a call, is dropped.
"""

import abc
from collections.abc import Callable
from typing import ClassVar

from tokasaurus.server.output_events import OutputEvent, TextPiece, merged
from tokasaurus.server.tools.call_grammar import CallSyntax
from tokasaurus.server.tools.call_reading import CallReader
from tokasaurus.tokenization.chat_template import ChatTemplate
from tokasaurus.tokenization.stop_strings import possible_start

State = Callable[[bool], bool]
"""Takes what it can from the buffer, given whether no more text comes; True: go on with the next
state."""


class ToolParser(abc.ABC):
    """Of one choice. A subclass says what follows `marker`, which announces calls."""

    marker: ClassVar[str]
    special_tokens: ClassVar[tuple[str, ...]]
    """Tokens that must stay in the text for this parser to see them."""

    @classmethod
    @abc.abstractmethod
    def call_syntax(cls, template: ChatTemplate) -> CallSyntax:
        """How a model of this template writes calls, so that this parser can read them."""

    def __init__(self, names: frozenset[str]) -> None:
        """`names` of the tools that the client offered."""
        self._names = names
        self._buffer = ""
        self._events: list[OutputEvent] = []
        self._held_space = ""
        self._has_called = False
        self._state: State = self._in_text
        self._reader: CallReader | None = None
        self._announced = ""

    def push(self, text: str) -> list[OutputEvent]:
        self._buffer += text
        return self._run(is_last=False)

    def flush(self) -> list[OutputEvent]:
        """What was held back, once no more text comes."""
        events = self._run(is_last=True)
        if not self._has_called:
            events.append(TextPiece(self._held_space))
        return merged(events)

    def _run(self, *, is_last: bool) -> list[OutputEvent]:
        while self._state(is_last):
            pass
        events, self._events = self._events, []
        return merged(events)

    @abc.abstractmethod
    def _after_marker(self, is_last: bool) -> bool: ...

    @abc.abstractmethod
    def _after_call(self, is_last: bool) -> bool: ...

    def _accepts(self, name: str) -> bool:
        """A marker shows what is meant, so that a name nobody offered is a call all the same."""
        return bool(name)

    def _in_text(self, is_last: bool) -> bool:
        before, marker, after = self._buffer.partition(self.marker)
        if marker:
            self._add_text(before)
            self._buffer, self._announced = after, marker
            self._state = self._after_marker
            return True
        end = len(before) if is_last else possible_start(before, self.marker)
        self._add_text(before[:end])
        self._buffer = before[end:]
        return False

    def _begin_call(self) -> bool:
        """The buffer starts with the call's opening brace."""
        self._reader = CallReader(self._add_call_event, self._accepts)
        self._state = self._in_call
        return True

    def _in_call(self, is_last: bool) -> bool:
        reader = self._reader
        assert reader is not None, "no call has begun"
        rest = reader.push(self._buffer)
        self._buffer = rest or ""
        if rest is None:
            if not is_last:
                return False
            reader.close()
        if reader.refused is not None:
            return self._take_as_text(reader.refused)
        self._state = self._after_call
        self._announced = ""
        return rest is not None

    def _take_as_text(self, consumed: str = "") -> bool:
        """What looked like a call is none."""
        self._add_text(self._announced + consumed)
        self._announced = ""
        self._state = self._in_text
        return True

    def _add_call_event(self, event: OutputEvent) -> None:
        self._has_called = True
        self._held_space = ""
        self._events.append(event)

    def _add_text(self, text: str) -> None:
        text = self._held_space + text
        known = text.rstrip()
        self._held_space = text[len(known) :]
        if known:
            self._events.append(TextPiece(known))


def awaits(buffer: str, token: str) -> bool:
    """The buffer is a beginning of the token, so that more text decides."""
    return len(buffer) < len(token) and token.startswith(buffer)
