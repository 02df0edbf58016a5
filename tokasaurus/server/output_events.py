"""What a chat's output is made of: reasoning, text and tool calls, in pieces as they arrive."""

from collections.abc import Iterable

import msgspec


class ReasoningPiece(msgspec.Struct, frozen=True):
    """More of what the model thought before it answered."""

    text: str


class TextPiece(msgspec.Struct, frozen=True):
    """More of the answer."""

    text: str


class CallStart(msgspec.Struct, frozen=True):
    """A tool call begins; the pieces of its arguments follow."""

    name: str


class ArgumentsPiece(msgspec.Struct, frozen=True):
    """More of the last call's arguments, which are JSON as the model wrote it."""

    text: str


OutputEvent = ReasoningPiece | TextPiece | CallStart | ArgumentsPiece


def merged(events: Iterable[OutputEvent]) -> list[OutputEvent]:
    """Neighbours of one kind as one piece; pieces without text left out."""
    events = list(events)
    if len(events) <= 1:
        return [e for e in events if isinstance(e, CallStart) or e.text]
    result: list[OutputEvent] = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, CallStart):
            result.append(event)
        elif not event.text:
            continue
        elif isinstance(last, type(event)) and not isinstance(last, CallStart):
            result[-1] = type(event)(last.text + event.text)
        else:
            result.append(event)
    return result
