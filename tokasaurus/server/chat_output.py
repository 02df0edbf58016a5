"""Splits what a model writes in a chat into reasoning, text and tool calls, as it arrives."""

from tokasaurus.server.output_events import (
    ArgumentsPiece,
    CallStart,
    OutputEvent,
    TextPiece,
    merged,
)
from tokasaurus.server.reasoning.splitter import ReasoningSplitter
from tokasaurus.server.tools.parser import ToolParser


class ChatOutputParser:
    """Of one choice. Without a splitter and a tool parser everything is text."""

    def __init__(
        self,
        splitter: ReasoningSplitter | None,
        tool_parser: ToolParser | None,
        *,
        max_calls: int | None = None,
        is_call_named: bool = False,
    ) -> None:
        """`max_calls`: later calls are left out."""
        self.is_call_named = is_call_named
        """The client, not the model, chose which tool to call."""
        self._splitter = splitter
        self._tool_parser = tool_parser
        self._max_calls = max_calls
        self.num_calls = 0
        """Those that `push` and `flush` have returned."""

    def push(self, text: str) -> list[OutputEvent]:
        """What is certain with this text."""
        if self._splitter is None:
            events: list[OutputEvent] = [TextPiece(text)]
        else:
            events = self._splitter.push(text)
        return self._counted(self._find_calls(events))

    def flush(self) -> list[OutputEvent]:
        """What was held back, once no more text comes."""
        events = [] if self._splitter is None else self._splitter.flush()
        events = self._find_calls(events)
        if self._tool_parser is not None:
            events += self._tool_parser.flush()
        return self._counted(events)

    def _find_calls(self, events: list[OutputEvent]) -> list[OutputEvent]:
        parser = self._tool_parser
        if parser is None:
            return events
        found: list[OutputEvent] = []
        for event in events:
            found += parser.push(event.text) if isinstance(event, TextPiece) else [event]
        return found

    def _counted(self, events: list[OutputEvent]) -> list[OutputEvent]:
        kept: list[OutputEvent] = []
        for event in merged(events):
            if isinstance(event, CallStart | ArgumentsPiece):
                self.num_calls += isinstance(event, CallStart)
                if self._max_calls is not None and self.num_calls > self._max_calls:
                    continue
            kept.append(event)
        return kept
