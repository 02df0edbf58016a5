"""The HTTP fields that ask for structured output, in OpenAI's and in other engines' spelling."""

from collections.abc import Collection, Mapping
from typing import Any

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.sampling_params import shown
from tokasaurus.server.structured_output import StructuredOutput

_JSON_SCHEMAS = [{"type": "object"}, {"type": "string"}, {"const": True}]
"""A schema, its JSON, or the schema that anything satisfies."""
CHOICE_SCHEMA = {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1}
_WITHOUT_SCHEMA = {
    "type": "object",
    "properties": {"type": {"enum": ["text", "json_object"]}},
    "required": ["type"],
    "additionalProperties": False,
}
_SCHEMA_PROPERTIES = {
    "name": {"type": "string"},
    "description": {"type": ["string", "null"]},
    "schema": {"type": "object"},
    "strict": {"type": ["boolean", "null"]},
}
RESPONSE_FORMAT_SCHEMA = {
    "anyOf": [
        _WITHOUT_SCHEMA,
        {
            "type": "object",
            "properties": {
                "type": {"const": "json_schema"},
                "json_schema": {
                    "type": "object",
                    "properties": _SCHEMA_PROPERTIES,
                    "required": ["schema"],
                    "additionalProperties": False,
                },
            },
            "required": ["type", "json_schema"],
            "additionalProperties": False,
        },
        {"type": "null"},
    ]
}
TEXT_OPTIONS_SCHEMA = {
    "anyOf": [
        {
            "type": "object",
            "properties": {
                "format": {
                    "anyOf": [
                        _WITHOUT_SCHEMA,
                        {
                            "type": "object",
                            "properties": {"type": {"const": "json_schema"}, **_SCHEMA_PROPERTIES},
                            "required": ["type", "schema"],
                            "additionalProperties": False,
                        },
                        {"type": "null"},
                    ]
                },
                "verbosity": {"enum": ["medium", None]},
            },
            "additionalProperties": False,
        },
        {"type": "null"},
    ]
}
STRUCTURED_OUTPUTS_SCHEMA = {
    "anyOf": [
        {
            "type": "object",
            "properties": {
                "json": {"anyOf": _JSON_SCHEMAS},
                "json_object": {"const": True},
                "regex": {"type": "string", "minLength": 1},
                "choice": CHOICE_SCHEMA,
                "grammar": {"type": "string", "minLength": 1},
            },
            "minProperties": 1,
            "maxProperties": 1,
            "additionalProperties": False,
        },
        {"type": "null"},
    ]
}
SCHEMA_FIELD_SCHEMA = {"anyOf": [*_JSON_SCHEMAS, {"type": "null"}]}

_KIND_OF = {
    "json": "json_schema",
    "json_object": "json_object",
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
}
GUIDED_FIELDS = {
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}


def structured_output(fields: Mapping[str, Any]) -> StructuredOutput | None:
    """What the fields that are not null ask for; None if any text will do.

    Raises InvalidRequestError if they contradict each other or can't be enforced.
    """
    asked = {name: value for name, value in fields.items() if value is not None}
    if asked.get("response_format") == {"type": "text"}:
        del asked["response_format"]
    if len(asked) > 1:
        raise InvalidRequestError(
            f"{' and '.join(map(repr, sorted(asked)))} can't be given together.",
            param=next(iter(asked)),
        )
    for name, value in asked.items():
        if name == "response_format":
            return _of_response_format(value, name)
        if name == "structured_outputs":
            return _of_structured_outputs(value)
        return StructuredOutput(**{GUIDED_FIELDS[name]: value}, param=name)
    return None


def text_format_output(value: Any, *, param: str = "text.format") -> StructuredOutput | None:
    """What `text.format` of a /v1/responses request asks for, or what another API calls `param`;
    None if any text will do. Raises InvalidRequestError if it can't be enforced."""
    if value in (None, {"type": "text"}):
        return None
    if isinstance(value, dict) and value.get("type") == "json_schema":
        _check_keys(value, {"type", *_SCHEMA_PROPERTIES}, param)
    return _of_format(value, param, value, "schema")


def _of_response_format(value: Any, param: str) -> StructuredOutput:
    wrapper = None
    if isinstance(value, dict) and value.get("type") == "json_schema":
        _check_keys(value, {"type", "json_schema"}, param)
        wrapper = value.get("json_schema")
        if isinstance(wrapper, dict):
            _check_keys(wrapper, _SCHEMA_PROPERTIES.keys(), f"{param}.json_schema")
    return _of_format(value, param, wrapper, "json_schema.schema")


def _of_format(value: Any, param: str, wrapper: Any, place: str) -> StructuredOutput:
    """`wrapper`: what holds the schema, and `place`: how a client gets there."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in ("text", "json_object", "json_schema"):
        raise InvalidRequestError(
            f"{param!r} must have a type of 'text', 'json_object' or 'json_schema', not "
            f"{shown(kind)}.",
            param=param,
        )
    if kind != "json_schema":
        _check_keys(value, {"type"}, param)
        return StructuredOutput(json_object=True, param=param)
    schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
    if not isinstance(schema, dict):
        raise InvalidRequestError(
            f"{param!r} of type 'json_schema' must hold the schema, an object, in {place!r}.",
            param=param,
        )
    return StructuredOutput(json_schema=schema, param=param)


def _check_keys(value: Mapping[str, Any], known: Collection[str], param: str) -> None:
    unknown = next((name for name in value if name not in known), None)
    if unknown is not None:
        name = f"{param}.{unknown[:64]}"
        raise InvalidRequestError(
            f"Unrecognized request argument: {name!r}; remove it.",
            param=name,
            code="unknown_parameter",
        )


def _of_structured_outputs(value: Any) -> StructuredOutput:
    param = "structured_outputs"
    asked = value if isinstance(value, dict) else {}
    asked = {name: item for name, item in asked.items() if item not in (None, False)}
    unknown = next((name for name in asked if name not in _KIND_OF), None)
    if unknown is not None or len(asked) != 1:
        found = f", not {shown(unknown)}" if unknown is not None else ""
        raise InvalidRequestError(
            f"{param!r} must hold exactly one of {', '.join(_KIND_OF)}{found}.", param=param
        )
    [(name, item)] = asked.items()
    return StructuredOutput(**{_KIND_OF[name]: item}, param=param)
