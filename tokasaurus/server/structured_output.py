"""What an output's text has to match: a JSON schema, a regular expression, choices or a grammar.

Checked and translated here, without the model's vocabulary, for HTTP and Python alike; the worker
compiles the result for its vocabulary. llguidance is imported when the first request asks for it.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.grammar_writing import is_several, json_value, literal, refused

MAX_GRAMMAR_CHARACTERS = 65_536
MAX_CHOICES = 1024
_MAX_CACHED = 256
_KINDS = ("json_schema", "json_object", "regex", "choice", "grammar")
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
            return _checked(f"start: {json_value({'type': 'object'}, self.param)}", self.param)
        if self.json_schema is not None:
            return _checked(f"start: {json_value(self.json_schema, self.param)}", self.param)
        if self.regex is not None:
            return _checked(_regex_grammar(_text(self.regex, self.param)), self.param)
        if self.choice is not None:
            return _checked(_choice_grammar(self.choice, self.param), self.param)
        return _checked(_lark(_text(self.grammar, self.param), self.param), self.param)


def _regex_grammar(regex: str) -> str:
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_regex(regex)


def _choice_grammar(choices: Any, param: str) -> str:
    is_texts = isinstance(choices, list | tuple) and all(isinstance(c, str) for c in choices)
    if not is_texts or not 1 <= len(choices) <= MAX_CHOICES or not all(choices):
        raise refused(param, f"choices are 1 to {MAX_CHOICES} strings that are not empty")
    return "start: " + " | ".join(map(literal, dict.fromkeys(choices)))


def _lark(grammar: str, param: str) -> str:
    if "::=" not in grammar or is_several(grammar):
        return grammar
    from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark

    try:
        return gbnf_to_lark(grammar)
    except (GbnfToLarkError, RecursionError) as error:
        raise refused(param, f"the grammar can't be read ({_first_line(str(error))})") from error


def _text(value: Any, param: str) -> str:
    if not isinstance(value, str) or not value:
        raise refused(param, "it has to be a string that is not empty")
    return value


def _checked(grammar: str, param: str) -> str:
    if len(grammar) > MAX_GRAMMAR_CHARACTERS:
        raise refused(param, f"it takes more than {MAX_GRAMMAR_CHARACTERS} characters")
    problem = _problem(grammar)
    if problem:
        raise refused(param, problem)
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
