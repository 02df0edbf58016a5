"""Reads a request's body, bounded in size, into its schema; whatever is wrong with it is a 400."""

import re
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.disconnect import ClientGoneError
from tokasaurus.server.errors import BodyTooLargeError

_DRAIN_FACTOR = 8
"""So much of a body that is too large is read and dropped, so that its sender sees the answer."""

M = TypeVar("M", bound=BaseModel)


async def parse_body(request: Request, schema: type[M], max_bytes: int) -> M:
    """Raises InvalidRequestError, which names the parameter, for what is not of the schema."""
    try:
        return schema.model_validate_json(await read_body(request, max_bytes))
    except ValidationError as error:
        raise _as_invalid_request(error) from error


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Raises BodyTooLargeError, or ClientGoneError if it does not come to its end."""
    chunks: list[bytes] = []
    size = 0
    has_more = True
    while has_more and size <= max_bytes * _DRAIN_FACTOR:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError("The client went away before its request was whole.")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size <= max_bytes:
            chunks.append(chunk)
        has_more = message.get("more_body", False)
    if size > max_bytes:
        raise BodyTooLargeError(
            f"The request's body is larger than the {max_bytes} bytes that this server reads; "
            "split it, or raise max_body_bytes."
        )
    return b"".join(chunks)


def _as_invalid_request(error: ValidationError) -> InvalidRequestError:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    message = first["msg"]
    if first["type"] == "json_invalid":
        return InvalidRequestError(
            f"The body is not JSON: {message.removeprefix('Invalid JSON: ')}"
        )
    if not first["loc"]:
        return InvalidRequestError("The body must be a JSON object.")
    param = re.sub(r"\.(\d+)", r"[\1]", ".".join(map(str, first["loc"])))[:200]
    if first["type"] == "missing":
        return InvalidRequestError(f"You must provide {param!r}.", param=param)
    if first["type"] == "extra_forbidden":
        return InvalidRequestError(
            f"Unrecognized request argument: {param!r}; remove it.",
            param=param,
            code="unknown_parameter",
        )
    return InvalidRequestError(
        f"{param!r} is not valid: {message[:1].lower()}{message[1:]}.", param=param
    )
