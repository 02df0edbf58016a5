"""Requests that the server makes to itself: through the same routes, without a connection."""

import asyncio
import logging
from typing import NamedTuple

from starlette.types import ASGIApp, Message

from tokasaurus.server.access import scope_keys
from tokasaurus.server.ids import new_id

log = logging.getLogger(__name__)


class Answer(NamedTuple):
    status: int
    request_id: str
    body: bytes


async def call(
    app: ASGIApp, path: str, body: bytes, *, method: str = "POST", query: bytes = b""
) -> Answer:
    """Send a JSON body. Cancelling it cancels what the request does."""
    request_id = new_id("req_")
    begun: list[int] = []
    parts: list[bytes] = []
    unread = [body]

    async def receive() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await asyncio.Event().wait()  # nobody goes away
        raise AssertionError("unreachable")

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            begun.append(message["status"])
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query,
        "headers": [(b"content-type", b"application/json")],
        "client": None,
        "server": None,
        scope_keys.INTERNAL: True,
        scope_keys.REQUEST_ID: request_id,
    }
    try:
        await app(scope, receive, send)
    except Exception:
        # The framework raises our bugs again after it has answered them.
        log.exception("%s failed on %s, which the server asked itself", path, request_id)
        if not begun:
            raise
    return Answer(begun[0], request_id, b"".join(parts))
