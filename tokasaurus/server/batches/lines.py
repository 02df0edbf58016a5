"""The input of a batch: one JSON object per line, read and checked in bounded memory."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from tokasaurus.server.schemas.batches import LineError

MAX_LINES = 1_000_000
MAX_SHOWN_ERRORS = 1000
"""So many are part of the batch; its error file holds them all."""


class Item(msgspec.Struct, forbid_unknown_fields=True):
    """A line: what to ask, and what its asker calls it."""

    custom_id: str
    method: str
    url: str
    body: dict[str, msgspec.Raw]


class NumberedItem(NamedTuple):
    line: int
    item: Item


class Checked(NamedTuple):
    num_items: int
    num_errors: int
    shown_errors: list[LineError]


def check_lines(path: Path, endpoint: str, max_line_bytes: int, errors: Path) -> Checked:
    """Looks at every line; all errors go to the file `errors`, the first ones are returned, too."""
    checker = _Checker(endpoint, max_line_bytes)
    shown: list[LineError] = []
    num_items = num_errors = 0

    with path.open("rb") as source, errors.open("wb") as target:

        def note(error: LineError) -> None:
            nonlocal num_errors
            num_errors += 1
            if len(shown) < MAX_SHOWN_ERRORS:
                shown.append(error)
            target.write(msgspec.json.encode(error) + b"\n")

        for number, line in _lines(source, max_line_bytes):
            num_items += 1
            if num_items > MAX_LINES:
                note(_error(number, "too_many_lines", f"A batch has at most {MAX_LINES} lines."))
                break
            if (error := checker.check(number, line)) is not None:
                note(error)
        if num_items == 0:
            note(_error(None, "empty_file", "The input file has no lines."))
    return Checked(num_items, num_errors, shown)


def read_items(source: IO[bytes], max_items: int, max_bytes: int) -> Iterator[list[Item]]:
    """The items of a checked file, in chunks of about that size."""
    decode = msgspec.json.Decoder(Item).decode
    chunk: list[Item] = []
    num_bytes = 0
    for line in source:
        if not line.strip():
            continue
        chunk.append(decode(line))
        num_bytes += len(line)
        if len(chunk) >= max_items or num_bytes >= max_bytes:
            yield chunk
            chunk, num_bytes = [], 0
    if chunk:
        yield chunk


class _Checker:
    def __init__(self, endpoint: str, max_line_bytes: int) -> None:
        self._endpoint = endpoint
        self._max_line_bytes = max_line_bytes
        self._decode = msgspec.json.Decoder(Item).decode
        self._lines_by_id: dict[str, int] = {}

    def check(self, number: int, line: bytes) -> LineError | None:
        """The first thing that is wrong with the line."""
        if len(line) > self._max_line_bytes:
            return _error(
                number,
                "line_too_long",
                f"The line is longer than {self._max_line_bytes} bytes; split the request, or "
                "raise max_body_bytes.",
            )
        try:
            item = self._decode(line)
        except msgspec.ValidationError as error:
            return _mismatch(number, str(error))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return _error(number, "invalid_json", f"The line is not JSON: {error}.")
        if not item.custom_id:
            return _error(number, "missing_custom_id", "'custom_id' is empty.", "custom_id")
        if item.method != "POST":
            return _error(number, "invalid_method", "'method' must be 'POST'.", "method")
        if item.url != self._endpoint:
            return _error(
                number,
                "mismatched_url",
                f"'url' must be the batch's endpoint, {self._endpoint!r}.",
                "url",
            )
        first = self._lines_by_id.setdefault(item.custom_id, number)
        if first != number:
            return _error(
                number,
                "duplicate_custom_id",
                f"'custom_id' is that of line {first}; it must be unique in the file.",
                "custom_id",
            )
        return None


def _lines(source: IO[bytes], max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Those that are not blank, with their numbers; of one that is too long, only its beginning."""
    number = 0
    while line := source.readline(max_bytes + 2):
        number += 1
        rest = line
        while not rest.endswith(b"\n") and (rest := source.readline(2**16)):
            pass
        if stripped := line.strip():
            yield number, stripped


def _mismatch(number: int, message: str) -> LineError:
    """In the words of the decoder, which name the field as a path below `$`."""
    field = re.search(r"(?:`\$\.|field `)([^`]+)`", message)
    name = field.group(1) if field else None
    code = "missing_field" if "missing required" in message else "invalid_line"
    return _error(number, code, f"The line is no request: {message}.", name)


def _error(line: int | None, code: str, message: str, param: str | None = None) -> LineError:
    return LineError(code=code, message=message, param=param, line=line)
