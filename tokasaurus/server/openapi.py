"""The OpenAPI description of routes that read and write their bodies themselves."""

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from tokasaurus import __version__
from tokasaurus.server.schemas.errors import ErrorResponse
from tokasaurus.server.schemas.messages import MessageError

_REF = "#/components/schemas/{name}"
_EVENT_SCHEMA = {
    "type": "object",
    "description": "A server-sent event, whose data are JSON (or, from OpenAI, [DONE]).",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}


def takes(schema: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route whose JSON body is of the schema."""
    content = {"application/json": {"schema": {"$ref": _REF.format(name=schema.__name__)}}}
    return {"requestBody": {"required": True, "content": content}}


def answers(
    shape: type[msgspec.Struct],
    *,
    streams: bool = False,
    failure: type[msgspec.Struct] = ErrorResponse,
) -> dict[int | str, Any]:
    """`responses` of a route that answers in the shape, or with an error."""
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": _ref_of(shape)}}}
    if streams:
        content["text/event-stream"] = {"schema": _EVENT_SCHEMA}
    return {200: {"description": "Success", "content": content}, "default": _failure(failure)}


def _failure(shape: type[msgspec.Struct]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": _ref_of(shape)}}}
    return {"description": "Failure", "content": content}


def _ref_of(shape: type[msgspec.Struct]) -> str:
    return _REF.format(name=shape.__name__)


def install_openapi(
    app: FastAPI, requests: list[type[BaseModel]], responses: list[type[msgspec.Struct]]
) -> None:
    """Let /openapi.json describe the routes, whose bodies are of these types."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title="Tokasaurus", version=__version__, routes=app.routes)
            document.setdefault("components", {})["schemas"] = _components(requests, responses)
            for operations in document["paths"].values():
                for operation in operations.values():
                    # The framework's own, for parameters that are not texts; we have none.
                    operation["responses"].pop("422", None)
                    operation["responses"].setdefault("default", _failure(ErrorResponse))
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]


def _components(
    requests: list[type[BaseModel]], responses: list[type[msgspec.Struct]]
) -> dict[str, Any]:
    shapes = [*responses, ErrorResponse, MessageError]
    _, components = msgspec.json.schema_components(shapes, ref_template=_REF)
    for schema in requests:
        own = schema.model_json_schema(ref_template=_REF.replace("{name}", "{model}"))
        components |= own.pop("$defs", {})
        components[schema.__name__] = own
    return components
