"""Stored responses of all servers of an engine: each keeps its own, and is asked by the others."""

import msgspec

from tokasaurus.server.peers import Peers
from tokasaurus.server.responses.store import (
    ResponseNotFoundError,
    ResponseStore,
    StoredResponse,
)

_GET, _DELETE = "get a stored response", "delete a stored response"


class SharedResponses:
    """Of a lone server, its own."""

    def __init__(self, own: ResponseStore, peers: Peers | None) -> None:
        self._own = own
        self._peers = peers
        if peers is not None:
            peers.answer_with(_GET, self._answer_get)
            peers.answer_with(_DELETE, self._answer_delete)

    async def get(self, response_id: str, *, param: str = "response_id") -> StoredResponse:
        """Raises ResponseNotFoundError, or ServerNotReadyError if another server is silent."""
        try:
            return self._own.get(response_id, param=param)
        except ResponseNotFoundError:
            for answer in await self._ask_others(_GET, response_id):
                if answer:
                    return msgspec.msgpack.decode(answer, type=StoredResponse)
            raise

    async def delete(self, response_id: str) -> None:
        """Raises ResponseNotFoundError, or ServerNotReadyError if another server is silent."""
        try:
            self._own.delete(response_id)
        except ResponseNotFoundError:
            if not any(await self._ask_others(_DELETE, response_id)):
                raise

    async def _ask_others(self, question: str, response_id: str) -> list[bytes]:
        if self._peers is None:
            return []
        return await self._peers.ask_all(question, response_id.encode())

    async def _answer_get(self, payload: bytes) -> bytes:
        try:
            return msgspec.msgpack.encode(self._own.get(payload.decode()))
        except ResponseNotFoundError:
            return b""

    async def _answer_delete(self, payload: bytes) -> bytes:
        try:
            self._own.delete(payload.decode())
        except ResponseNotFoundError:
            return b""
        return b"deleted"
