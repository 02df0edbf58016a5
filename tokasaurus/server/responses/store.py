"""Finished responses in memory, bounded in number and in bytes: the oldest go first."""

from collections import OrderedDict
from typing import Any

import msgspec

from tokasaurus.errors import InvalidRequestError

_MAX_RESPONSES = 4096
_MAX_BYTES = 256 * 2**20


class ResponseNotFoundError(InvalidRequestError):
    """No such response is stored (any more)."""

    status_code = 404
    code = "response_not_found"


class StoredResponse(msgspec.Struct, frozen=True, kw_only=True):
    response: bytes
    """The response object as JSON."""
    encoded_messages: bytes

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation up to and with this response, without instructions."""
        return msgspec.json.decode(self.encoded_messages)

    @property
    def num_bytes(self) -> int:
        return len(self.response) + len(self.encoded_messages)


class ResponseStore:
    """Of one server process; a restart forgets everything."""

    def __init__(self, *, max_responses: int = _MAX_RESPONSES, max_bytes: int = _MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._stored: OrderedDict[str, StoredResponse] = OrderedDict()
        self._num_bytes = 0

    def add(self, response_id: str, response: bytes, messages: list[dict[str, Any]]) -> None:
        """One that is larger than the whole store is not kept."""
        stored = StoredResponse(response=response, encoded_messages=msgspec.json.encode(messages))
        if stored.num_bytes > self._max_bytes:
            return
        self._stored[response_id] = stored
        self._num_bytes += stored.num_bytes
        while len(self._stored) > self._max_responses or self._num_bytes > self._max_bytes:
            _, oldest = self._stored.popitem(last=False)
            self._num_bytes -= oldest.num_bytes

    def get(self, response_id: str, *, param: str = "response_id") -> StoredResponse:
        """Raises ResponseNotFoundError."""
        stored = self._stored.get(response_id)
        if stored is None:
            raise ResponseNotFoundError(
                f"There is no response {response_id[:80]!r} here: it was deleted, not stored, or "
                "is so old that newer ones took its place.",
                param=param,
            )
        return stored

    def delete(self, response_id: str) -> None:
        """Raises ResponseNotFoundError."""
        self._num_bytes -= self.get(response_id).num_bytes
        del self._stored[response_id]
