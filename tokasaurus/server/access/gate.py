"""Lets requests through that bring a key: `Authorization: Bearer KEY`, or `X-Api-Key: KEY`."""

from http import HTTPStatus

from starlette.types import ASGIApp, Receive, Scope, Send

from tokasaurus.server.access import scope_keys
from tokasaurus.server.access.api_keys import ApiKeys
from tokasaurus.server.errors import error_response
from tokasaurus.server.schemas.errors import ErrorBody, ErrorResponse

OPEN_PATHS = frozenset({"/health", "/ready"})
"""What load balancers and supervisors ask."""

_BEARER = b"bearer "


class ApiKeyGate:
    """ASGI middleware; without keys it should not be installed at all."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] != "http"
            or scope["path"] in OPEN_PATHS
            or scope_keys.INTERNAL in scope
            or self._keys.accepts(key := _key_of(scope))
        ):
            await self._app(scope, receive, send)
            return
        what = "is not one that this server knows" if key else "is missing"
        body = ErrorBody(
            message=f"The API key {what}; send it as 'Authorization: Bearer KEY'.",
            type="invalid_request_error",
            code="invalid_api_key",
        )
        response = error_response(
            scope["path"],
            HTTPStatus.UNAUTHORIZED,
            ErrorResponse(body),
            {"WWW-Authenticate": "Bearer"},
        )
        await response(scope, receive, send)


def _key_of(scope: Scope) -> bytes:
    """b"" if there is none."""
    headers = dict(scope["headers"])
    bearer: bytes = headers.get(b"authorization", b"")
    if bearer[: len(_BEARER)].lower() == _BEARER:
        return bearer[len(_BEARER) :].strip()
    own: bytes = headers.get(b"x-api-key", b"")
    return own.strip()
