"""Every failure as clients expect it: OpenAI's, or on /v1/messages Anthropic's."""

import math
from http import HTTPStatus

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from tokasaurus.errors import (
    DeadlineExceededError,
    EngineFailedError,
    InvalidRequestError,
    OverloadedError,
    SlowReaderError,
    TokasaurusError,
)
from tokasaurus.server.disconnect import CLIENT_CLOSED_REQUEST, ClientGoneError
from tokasaurus.server.schemas.errors import ErrorBody, ErrorResponse
from tokasaurus.server.schemas.messages import MessageError, MessageErrorBody

_MESSAGES_PATH = "/v1/messages"
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}

_INTERNAL_ERROR = ErrorResponse(
    ErrorBody(message="The server failed on this request; its log says why.", type="server_error")
)


class BodyTooLargeError(InvalidRequestError):
    """The request's body has more bytes than this server reads."""

    status_code = 413
    code = "request_too_large"


class ServerNotReadyError(TokasaurusError):
    """The server can't take requests now; another one may, or this one later."""


def describe(error: TokasaurusError) -> ErrorResponse:
    """What a client is told."""
    body = ErrorBody(message=str(error), type="server_error")
    if isinstance(error, InvalidRequestError):
        body.type, body.param, body.code = "invalid_request_error", error.param, error.code
    elif isinstance(error, OverloadedError):
        body.type, body.code = "rate_limit_error", "rate_limit_exceeded"
    elif isinstance(error, ServerNotReadyError):
        body.code = "server_not_ready"
    elif isinstance(error, DeadlineExceededError):
        body.type, body.code = "timeout_error", "timeout"
    elif isinstance(error, SlowReaderError):
        body.code = "slow_reader"
    elif isinstance(error, EngineFailedError):
        body.code = "engine_failed"
    return ErrorResponse(body)


def status_of(error: TokasaurusError) -> int:
    """The HTTP status for it."""
    if isinstance(error, InvalidRequestError):
        return error.status_code
    if isinstance(error, OverloadedError):
        return HTTPStatus.TOO_MANY_REQUESTS
    if isinstance(error, ServerNotReadyError):
        return HTTPStatus.SERVICE_UNAVAILABLE
    if isinstance(error, DeadlineExceededError):
        return HTTPStatus.GATEWAY_TIMEOUT
    if isinstance(error, ClientGoneError):
        return CLIENT_CLOSED_REQUEST
    return HTTPStatus.INTERNAL_SERVER_ERROR


def describe_to_anthropic(status: int, body: ErrorResponse) -> MessageError:
    """The same, as Anthropic's clients are told it."""
    kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "api_error"
    error = MessageErrorBody(_ANTHROPIC_TYPES.get(status, kind), body.error.message)
    if body.error.param is not None:
        error.param = body.error.param
    return MessageError(error)


def error_response(
    path: str, status: int, body: ErrorResponse, headers: dict[str, str] | None = None
) -> Response:
    """A whole response that says only that; `path`: of the request."""
    is_anthropic = path == _MESSAGES_PATH or path.startswith(f"{_MESSAGES_PATH}/")
    shown = describe_to_anthropic(status, body) if is_anthropic else body
    return Response(
        msgspec.json.encode(shown), status, media_type="application/json", headers=headers
    )


def install_error_handlers(app: FastAPI) -> None:
    """Also for what the framework itself answers: unknown paths and methods, and our own bugs."""
    app.add_exception_handler(TokasaurusError, _handle_own)
    app.add_exception_handler(HTTPException, _handle_http)
    app.add_exception_handler(Exception, _handle_bug)


async def _handle_own(request: Request, error: Exception) -> Response:
    assert isinstance(error, TokasaurusError)
    return own_error_response(request.url.path, error)


def own_error_response(path: str, error: TokasaurusError) -> Response:
    """What a request to `path` gets that ended so."""
    headers = None
    if isinstance(error, OverloadedError):
        headers = {"Retry-After": str(max(1, math.ceil(error.retry_after_seconds)))}
    elif isinstance(error, DeadlineExceededError):
        headers = {"X-Should-Retry": "false"}  # OpenAI's clients heed it; the next try would end so
    return error_response(path, status_of(error), describe(error), headers)


async def _handle_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path
    message = {
        HTTPStatus.NOT_FOUND: f"There is no {path} here; see /openapi.json for what there is.",
        HTTPStatus.METHOD_NOT_ALLOWED: f"{path} does not take {method} requests.",
    }.get(HTTPStatus(error.status_code), str(error.detail))
    body = ErrorBody(message=message, type="invalid_request_error")
    headers = None if error.headers is None else dict(error.headers)
    return error_response(path, error.status_code, ErrorResponse(body), headers)


async def _handle_bug(request: Request, error: Exception) -> Response:  # noqa: ARG001
    # The framework raises the error again after this response, and uvicorn logs it.
    return bug_response(request.url.path)


def bug_response(path: str) -> Response:
    """What a request to `path` gets that met a bug of ours."""
    return error_response(path, HTTPStatus.INTERNAL_SERVER_ERROR, _INTERNAL_ERROR)
