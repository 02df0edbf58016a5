"""Requests about batches that reach a server which does not lead: the leading one answers them."""

from collections.abc import Sequence

import msgspec
from fastapi import Request, Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from tokasaurus.errors import TokasaurusError
from tokasaurus.server.batches.internal_call import call
from tokasaurus.server.body import read_body
from tokasaurus.server.errors import bug_response, own_error_response
from tokasaurus.server.peers import Peers

_QUESTION = "http"
_LEADER = 0


class _ForwardedRequest(msgspec.Struct, frozen=True, kw_only=True):
    method: str
    path: str
    query: bytes
    body: bytes


class _ForwardedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    status: int
    body: bytes


class ForwardToLeader:
    """ASGI middleware: `routes`, whose answers are JSON, are the leading server's."""

    def __init__(
        self, app: ASGIApp, routes: Sequence[BaseRoute], peers: Peers, max_body_bytes: int
    ) -> None:
        self._app = app
        self._routes = routes
        self._peers = peers
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = None
        if scope["type"] == "http":
            route = next((r for r in self._routes if r.matches(scope)[0] is Match.FULL), None)
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        try:
            response = await self._ask(Request(scope, receive, send))
        except TokasaurusError as error:
            response = own_error_response(scope["path"], error)
        except Exception:
            await bug_response(scope["path"])(scope, receive, send)
            raise
        await response(scope, receive, send)

    async def _ask(self, request: Request) -> Response:
        forwarded = _ForwardedRequest(
            method=request.method,
            path=request.scope["path"],
            query=request.scope["query_string"],
            body=await read_body(request, self._max_body_bytes),
        )
        payload = await self._peers.ask(_LEADER, _QUESTION, msgspec.msgpack.encode(forwarded))
        answer = msgspec.msgpack.decode(payload, type=_ForwardedAnswer)
        return Response(answer.body, answer.status, media_type="application/json")


def answer_forwarded(app: ASGIApp, peers: Peers) -> None:
    """Let the leading server's app answer what others forward."""

    async def answer(payload: bytes) -> bytes:
        request = msgspec.msgpack.decode(payload, type=_ForwardedRequest)
        answer = await call(
            app, request.path, request.body, method=request.method, query=request.query
        )
        return msgspec.msgpack.encode(_ForwardedAnswer(status=answer.status, body=answer.body))

    peers.answer_with(_QUESTION, answer)
