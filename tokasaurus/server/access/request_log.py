"""Gives every request an id, counts its response and, if wanted, logs it as one line of JSON."""

import logging
import re
import time
from collections.abc import Awaitable

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokasaurus.observability import metrics
from tokasaurus.observability.measurements import Measurements
from tokasaurus.server.access import scope_keys
from tokasaurus.server.disconnect import CLIENT_CLOSED_REQUEST
from tokasaurus.server.ids import new_id

log = logging.getLogger(__name__)

_HEADER = b"x-request-id"
_ACCEPTED_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_OTHER = "other"
_METHODS = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})


class LoggedRequest(msgspec.Struct, omit_defaults=True):
    """The fields of a line."""

    request_id: str
    method: str
    path: str
    status: int
    seconds: float
    bytes_sent: int
    client: str | None = None
    error: str | None = None


class RequestLog:
    """ASGI middleware, the outermost of ours."""

    def __init__(self, app: ASGIApp, measurements: Measurements, *, logs: bool) -> None:
        """`logs`: one line per request; otherwise only for those that fail for a bug of ours."""
        self._app = app
        self._measurements = measurements
        self._logs = logs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope_keys.INTERNAL in scope:
            await self._app(scope, receive, send)
            return
        request_id = _id_of(scope)
        scope[scope_keys.REQUEST_ID] = request_id.decode()
        begun = time.monotonic()
        status, num_bytes = CLIENT_CLOSED_REQUEST, 0

        def send_and_count(message: Message) -> Awaitable[None]:
            nonlocal status, num_bytes
            if message["type"] == "http.response.body":
                num_bytes += len(message.get("body", b""))
            elif message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (_HEADER, request_id)]
            return send(message)

        error: str | None = None
        try:
            await self._app(scope, receive, send_and_count)
        except Exception as caught:
            status, error = 500, type(caught).__name__
            raise
        finally:
            self._note(scope, status, time.monotonic() - begun, num_bytes, error)

    def _note(
        self, scope: Scope, status: int, seconds: float, num_bytes: int, error: str | None
    ) -> None:
        method = scope["method"] if scope["method"] in _METHODS else _OTHER
        route = getattr(scope.get("route"), "path", _OTHER)
        self._measurements.number(metrics.HTTP_RESPONSES, method, route, str(status)).value += 1
        if not self._logs and error is None:
            return
        client = scope.get("client")
        line = LoggedRequest(
            request_id=scope[scope_keys.REQUEST_ID],
            method=scope["method"],
            path=scope["path"],
            status=status,
            seconds=round(seconds, 6),
            bytes_sent=num_bytes,
            client=client and client[0],
            error=error,
        )
        level = logging.INFO if error is None else logging.ERROR
        log.log(level, msgspec.json.encode(line).decode())


def _id_of(scope: Scope) -> bytes:
    """The client's own if it sent a usable one."""
    for name, value in scope["headers"]:
        if name == _HEADER and _ACCEPTED_ID.fullmatch(value):
            return bytes(value)
    return new_id("req_").encode()
