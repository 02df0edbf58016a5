"""Splits a text that arrives in pieces at the marks around a model's reasoning.

What comes out, joined, does not depend on how the text was cut into pieces.
"""

from typing import NamedTuple

from tokasaurus.server.output_events import OutputEvent, ReasoningPiece, TextPiece, merged
from tokasaurus.tokenization.stop_strings import possible_start


class ReasoningMarks(NamedTuple):
    """What a model writes around its reasoning."""

    opening: str
    closing: str


REASONING_FORMATS = {
    "think": ReasoningMarks("<think>", "</think>"),
    "mistral": ReasoningMarks("[THINK]", "[/THINK]"),
}


class ReasoningSplitter:
    """Reasoning can only come first. White space around it is dropped; other text stays as it is.

    A model that is still thinking when its text ends has only reasoned.
    """

    def __init__(self, marks: ReasoningMarks, *, starts_inside: bool) -> None:
        """`starts_inside`: the prompt has opened the reasoning already."""
        self._marks = marks
        self._buffer = ""
        self._step = self._inside if starts_inside else self._before
        self._has_reasoned = False

    def push(self, text: str) -> list[OutputEvent]:
        self._buffer += text
        return merged(self._step(False))

    def flush(self) -> list[OutputEvent]:
        """What was held back, once no more text comes."""
        return merged(self._step(True))

    def _before(self, is_last: bool) -> list[OutputEvent]:
        text = self._buffer.lstrip()
        opening = self._marks.opening
        if text.startswith(opening):
            self._buffer = text[len(opening) :]
            self._step = self._inside
            return self._inside(is_last)
        if opening.startswith(text) and not is_last:
            return []
        self._step = self._answer
        return self._answer(is_last)

    def _inside(self, is_last: bool) -> list[OutputEvent]:
        before, closing, after = self._buffer.partition(self._marks.closing)
        if closing:
            self._buffer = after
            self._step = self._after
            return [self._reasoning(before.rstrip()), *self._after(is_last)]
        if is_last:
            self._buffer = ""
            return [self._reasoning(before.rstrip())]
        known = before[: possible_start(before, self._marks.closing)].rstrip()
        self._buffer = before[len(known) :]
        return [self._reasoning(known)]

    def _reasoning(self, text: str) -> ReasoningPiece:
        if not self._has_reasoned:
            text = text.lstrip()
        self._has_reasoned = self._has_reasoned or bool(text)
        return ReasoningPiece(text)

    def _after(self, is_last: bool) -> list[OutputEvent]:
        self._buffer = self._buffer.lstrip()
        if not self._buffer:
            return []
        self._step = self._answer
        return self._answer(is_last)

    def _answer(self, is_last: bool) -> list[OutputEvent]:  # noqa: ARG002 - nothing is held back
        text, self._buffer = self._buffer, ""
        return [TextPiece(text)]
