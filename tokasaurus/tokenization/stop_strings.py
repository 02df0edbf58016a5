"""Finds stop strings in a text that arrives in pieces, and holds back what may begin one."""

from collections.abc import Sequence


class StopMatcher:
    """Watches one text for several non-empty stop strings of any length.

    The text ends at the stop string that is complete first; of those complete at the same place, at
    the longest. This does not depend on how the text was cut into pieces.
    """

    __slots__ = ("_held", "_include", "_stops", "matched")

    def __init__(self, stops: Sequence[str], *, include_stop: bool = False) -> None:
        assert all(stops), f"empty stop string in {stops!r}"
        self._stops = tuple(stops)
        self._include = include_stop
        self._held = ""
        self.matched: str | None = None
        """The stop string that ended the text."""

    def push(self, piece: str) -> str:
        """The part of the text that is now known to come before any stop string."""
        assert self.matched is None, "the text has ended"
        text = self._held + piece
        found = self._find_first(text)
        if found is not None:
            start, end = found
            self._held = ""
            self.matched = text[start:end]
            return text[: end if self._include else start]
        held_from = min(possible_start(text, stop) for stop in self._stops)
        self._held = text[held_from:]
        return text[:held_from]

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held

    def _find_first(self, text: str) -> tuple[int, int] | None:
        first: tuple[int, int] | None = None
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0:
                end = start + len(stop)
                if first is None or (end, start) < (first[1], first[0]):
                    first = (start, end)
        return first


def possible_start(text: str, wanted: str) -> int:
    """Where the longest suffix of the text that is a proper prefix of `wanted` starts."""
    position = text.find(wanted[0], max(0, len(text) - len(wanted) + 1))
    while position >= 0:
        if wanted.startswith(text[position:]):
            return position
        position = text.find(wanted[0], position + 1)
    return len(text)
