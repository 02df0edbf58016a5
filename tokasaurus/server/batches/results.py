"""The answers of a batch: two files that grow line by line, and tell after a restart what is done.

A line is written in one call when its item has finished, so that of a server that was killed only
the last line can be incomplete; it is cut off.
"""

import os
from pathlib import Path
from types import TracebackType
from typing import IO

import msgspec

from tokasaurus.server.batches.internal_call import Answer
from tokasaurus.server.ids import new_id
from tokasaurus.server.schemas.batches import (
    ItemError,
    ItemResponse,
    RequestCounts,
    ResultLine,
)

_SUCCESS = range(200, 300)


class _Written(msgspec.Struct):
    custom_id: str


class ResultFiles:
    """Use as a context manager. Appends go to the end of what an earlier server wrote."""

    def __init__(self, results: Path, failures: Path, counts: RequestCounts) -> None:
        """`counts` is kept up to date; its `total` is the caller's."""
        self._paths = {"completed": results, "failed": failures}
        self._files: dict[str, IO[bytes]] = {}
        self._counts = counts
        self.finished: set[str] = set()
        """The custom ids that need not be asked again."""

    def recover(self) -> None:
        """Read what is there; may take long."""
        for kind, path in self._paths.items():
            ids = _recover_ids(path)
            setattr(self._counts, kind, len(ids))
            self.finished.update(ids)

    def __enter__(self) -> "ResultFiles":
        for kind, path in self._paths.items():
            self._files[kind] = path.open("ab", buffering=0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.close()

    def add_answer(self, custom_id: str, answer: Answer) -> None:
        """A success or a failure, by its status."""
        response = ItemResponse(answer.status, answer.request_id, msgspec.Raw(answer.body))
        line = ResultLine(id=_new_line_id(), custom_id=custom_id, response=response)
        self._add("completed" if answer.status in _SUCCESS else "failed", line)

    def add_error(self, custom_id: str, code: str, message: str) -> None:
        """It was not asked."""
        error = ItemError(code, message)
        self._add("failed", ResultLine(id=_new_line_id(), custom_id=custom_id, error=error))

    def _add(self, kind: str, line: ResultLine) -> None:
        written = memoryview(msgspec.json.encode(line) + b"\n")
        while written:
            written = written[self._files[kind].write(written) :]
        setattr(self._counts, kind, getattr(self._counts, kind) + 1)


def _recover_ids(path: Path) -> list[str]:
    """Cuts off an incomplete last line."""
    if not path.exists():
        return []
    decode = msgspec.json.Decoder(_Written).decode
    ids: list[str] = []
    size = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            ids.append(decode(line).custom_id)
            size += len(line)
    os.truncate(path, size)
    return ids


def _new_line_id() -> str:
    return new_id("batch_req_")
