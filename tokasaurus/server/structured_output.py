"""What an output's text has to match: a JSON schema, a regular expression, choices or a grammar.

Checked and translated here, without the model's vocabulary, for HTTP and Python alike; the worker
compiles the result for its vocabulary. llguidance is imported when the first request asks for it.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from tokasaurus.errors import InvalidRequestError

MAX_GRAMMAR_CHARACTERS = 65_536
MAX_CHOICES = 1024
_MAX_CACHED = 256
_KINDS = ("json_schema", "json_object", "regex", "choice", "grammar")
_JSON_OPTIONS = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_pattern": r"( |\n[ \t]{0,24})?",
    "coerce_one_of": False,
    "lenient": False,
}
"""Between JSON tokens: nothing, a space, or a new line and its indentation. White space without
bounds would let a model that doesn't know how to go on fill its output with it."""
_DEFINITIONS = ("$defs", "definitions")
_UNSUPPORTED_KEYWORDS = re.compile(r"Unimplemented keys: \[(.*?)\]")


class StructuredOutput(msgspec.Struct, frozen=True, kw_only=True):
    """Exactly one kind. Raises InvalidRequestError, saying why, for what can't be enforced."""

    json_schema: Mapping[str, Any] | bool | str | None = None
    """Draft 2020-12, as an object or its JSON; keywords that can't be enforced are refused."""
    json_object: bool = False
    """Any JSON object."""
    regex: str | None = None
    """The whole text matches; Rust's syntax, which has no look-around and no back-references."""
    choice: Sequence[str] | None = None
    """The text is one of these."""
    grammar: str | None = None
    """In llguidance's dialect of Lark, or in GBNF."""
    param: str = "structured_output"
    """What a client calls it, for messages."""

    def __post_init__(self) -> None:
        given = [kind for kind in _KINDS if getattr(self, kind) not in (None, False)]
        if self.json_schema is False:
            given.append("json_schema")
        if len(given) != 1:
            found = f", not {' and '.join(given)} together" if given else ""
            raise InvalidRequestError(
                f"{self.param!r} must give exactly one of {', '.join(_KINDS)}{found}.",
                param=self.param,
            )
        self.compiled()

    def compiled(self) -> str:
        """The grammar as the worker takes it."""
        if self.json_object:
            return _checked(_json_grammar({"type": "object"}), self.param)
        if self.json_schema is not None:
            return _checked(_json_grammar(_parsed_schema(self.json_schema, self.param)), self.param)
        if self.regex is not None:
            return _checked(_regex_grammar(_text(self.regex, self.param)), self.param)
        if self.choice is not None:
            return _checked(_choice_grammar(self.choice, self.param), self.param)
        return _checked(_lark(_text(self.grammar, self.param), self.param), self.param)


def framed_json(
    schemas: Sequence[Mapping[str, Any] | bool],
    *,
    begin: str = "",
    begin_token_ids: Sequence[int] = (),
    separator: str = "",
    end: str = "",
    max_count: int | None = 1,
    param: str = "tools",
) -> StructuredOutput:
    """JSON texts that each match one of the schemas, between fixed texts: `begin_token_ids`, for
    tags that are special tokens, then `begin`, one to `max_count` (None: any number) of the JSON
    texts with `separator` in between, then `end`.

    For tool calls, see `call_schema`. Raises InvalidRequestError as above.
    """
    alternatives = " | ".join(f"json_{i}" for i in range(len(schemas)))
    more = "" if max_count is None else str(max_count - 1)
    repeated = f" ({_literal(separator)} call){{0,{more}}}" if max_count != 1 else ""
    tags = "".join(f"<[{token_id}]> " for token_id in begin_token_ids)
    lines = [
        f"start: {tags}{_literal(begin)} call{repeated} {_literal(end)}",
        f"call: {alternatives}",
        *(
            f"json_{i}: %json {_json_text(_with_options(_parsed_schema(schema, param)))}"
            for i, schema in enumerate(schemas)
        ),
    ]
    return StructuredOutput(grammar="\n".join(lines), param=param)


def call_schema(
    name: str,
    parameters: Mapping[str, Any],
    *,
    name_key: str = "name",
    arguments_key: str = "arguments",
    param: str = "tools",
) -> dict[str, Any]:
    """The schema of a call as most models write it: `{"name": ..., "arguments": {...}}`.

    Definitions move to the top, where references look for them.
    """
    arguments = dict(parameters)
    definitions = {key: arguments.pop(key) for key in _DEFINITIONS if key in arguments}
    astray = next((ref for ref in _references(arguments, definitions) if _is_astray(ref)), None)
    if astray is not None:
        raise _refused(param, f"'$ref' may only lead to '$defs', not to {astray[:80]!r}")
    return {
        "type": "object",
        "properties": {name_key: {"const": name}, arguments_key: arguments},
        "required": [name_key, arguments_key],
        "additionalProperties": False,
        **definitions,
    }


def _references(*values: Any) -> Iterator[str]:
    """Every `$ref` somewhere in these."""
    pending = list(values)
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        elif isinstance(value, Mapping):
            if isinstance(ref := value.get("$ref"), str):
                yield ref
            pending += value.values()


def _is_astray(reference: str) -> bool:
    return not reference.startswith(tuple(f"#/{key}/" for key in _DEFINITIONS))


def _parsed_schema(schema: Any, param: str) -> dict[str, Any]:
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise _refused(param, f"the schema is not JSON ({error})") from error
    if isinstance(schema, bool):
        return {} if schema else {"enum": []}
    if not isinstance(schema, Mapping):
        raise _refused(param, "a JSON schema is an object")
    return dict(schema)


def _with_options(schema: dict[str, Any]) -> dict[str, Any]:
    return schema | {"x-guidance": _JSON_OPTIONS}


def _json_grammar(schema: dict[str, Any]) -> str:
    return f"start: %json {_json_text(_with_options(schema))}"


def _json_text(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise _refused("json_schema", f"the schema is not JSON ({error})") from error


def _regex_grammar(regex: str) -> str:
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_regex(regex)


def _choice_grammar(choices: Any, param: str) -> str:
    is_texts = isinstance(choices, list | tuple) and all(isinstance(c, str) for c in choices)
    if not is_texts or not 1 <= len(choices) <= MAX_CHOICES or not all(choices):
        raise _refused(param, f"choices are 1 to {MAX_CHOICES} strings that are not empty")
    return "start: " + " | ".join(map(_literal, dict.fromkeys(choices)))


def _lark(grammar: str, param: str) -> str:
    if "::=" not in grammar:
        return grammar
    from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark

    try:
        return gbnf_to_lark(grammar)
    except (GbnfToLarkError, RecursionError) as error:
        raise _refused(param, f"the grammar can't be read ({_first_line(str(error))})") from error


def _literal(text: str) -> str:
    """A string of Lark's; DEL is the one character that JSON leaves as it is and Lark does not."""
    return json.dumps(text).replace("\x7f", "\\u007f")


def _text(value: Any, param: str) -> str:
    if not isinstance(value, str) or not value:
        raise _refused(param, "it has to be a string that is not empty")
    return value


def _checked(grammar: str, param: str) -> str:
    if len(grammar) > MAX_GRAMMAR_CHARACTERS:
        raise _refused(param, f"it takes more than {MAX_GRAMMAR_CHARACTERS} characters")
    problem = _problem(grammar)
    if problem:
        raise _refused(param, problem)
    return grammar


@lru_cache(_MAX_CACHED)
def _problem(grammar: str) -> str:
    """Why the grammar can't be enforced; empty if it can."""
    from llguidance import LLMatcher

    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    if not is_error:
        return ""
    message = messages[0].split("failed to compile JSON schema: ")[-1]
    if keywords := _UNSUPPORTED_KEYWORDS.search(message):
        names = keywords[1].replace('"', "'")
        return f"the schema's keyword {names} is not supported; remove it"
    if message.startswith("oneOf constraints"):
        return "the schema's 'oneOf' has branches that may both match; use 'anyOf'"
    if message.startswith("Unknown format"):
        return f"the schema's 'format' is not supported ({_first_line(message)})"
    if "regex parse error" in message:
        message = message.split("error: ", 1)[-1]
        return f"the regular expression is refused: {_first_line(message)}"
    return _first_line(message)


def _first_line(message: str) -> str:
    line = message.split("\n", 1)[0].strip()
    return line if len(line) <= 200 else f"{line[:197]}..."


def _refused(param: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"{param!r} can't be enforced: {reason}.", param=param)
