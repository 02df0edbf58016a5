"""Pieces of grammars in llguidance's dialect of Lark, as the worker takes them."""

import json
from collections.abc import Mapping
from typing import Any

from tokasaurus.errors import InvalidRequestError

_JSON_OPTIONS = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_pattern": r"( |\n[ \t]{0,24})?",
    "coerce_one_of": False,
    "lenient": False,
}
"""Between JSON tokens: nothing, a space, or a new line and its indentation. White space without
bounds would let a model that doesn't know how to go on fill its output with it."""


def literal(text: str) -> str:
    """A string of Lark's; DEL is the one character that JSON leaves as it is and Lark does not."""
    return json.dumps(text).replace("\x7f", "\\u007f")


def json_value(schema: Any, param: str) -> str:
    """The JSON values of a schema: an object, its JSON, or a boolean. Raises InvalidRequestError
    if it is none."""
    options = {"x-guidance": _JSON_OPTIONS}
    return f"%json {_json_text(_parsed_schema(schema, param) | options, param)}"


def several(grammars: Mapping[str, str]) -> str:
    """One grammar out of several in Lark or, as this function writes it, in JSON; the first is the
    whole text, in which `@name` stands for one of the others."""
    parts: list[dict[str, Any]] = []
    for name, grammar in grammars.items():
        if is_several(grammar):
            first, *others = json.loads(grammar)["grammars"]
            parts += [{**first, "name": name}, *others]
        else:
            parts.append({"name": name, "lark_grammar": grammar})
    return json.dumps({"grammars": parts})


def is_several(grammar: str) -> bool:
    """Whether it is JSON; nothing in Lark starts with a brace."""
    return grammar.lstrip().startswith("{")


def refused(param: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"{param!r} can't be enforced: {reason}.", param=param)


def _parsed_schema(schema: Any, param: str) -> dict[str, Any]:
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise refused(param, f"the schema is not JSON ({error})") from error
    if isinstance(schema, bool):
        return {} if schema else {"enum": []}
    if not isinstance(schema, Mapping):
        raise refused(param, "a JSON schema is an object")
    return dict(schema)


def _json_text(value: Any, param: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise refused(param, f"the schema is not JSON ({error})") from error
