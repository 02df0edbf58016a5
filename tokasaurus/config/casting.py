"""Strict values for options: from text (command line) and from Python objects, by annotation.

Nothing is evaluated, rounded or stringified: what does not fit exactly raises `CastError`.
Supported annotations: str, bool, int, float, None, Literal[...], list[T], and unions of these.
"""

import json
import math
import numbers
import os
import re
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

_TRUE_WORDS = frozenset({"t", "true", "yes", "on", "1"})
_FALSE_WORDS = frozenset({"f", "false", "no", "off", "0"})
_NONE_WORDS = frozenset({"none", "null"})
_INTEGER = re.compile(r"[+-]?\d+(_\d+)*")
_FLOAT = re.compile(r"[+-]?(\d+(_\d+)*\.?\d*|\.\d+)([eE][+-]?\d+)?")
_MOST_SPECIFIC_FIRST = (NoneType, bool, int, float, str)


class CastError(ValueError):
    """The value does not fit the annotation. The text completes "<option> must be ..."."""


def parse_text(text: str, annotation: Any) -> Any:
    """The value that `text`, as typed on a command line, stands for."""
    members = _members(annotation)
    for member in members:
        if get_origin(member) is Literal:
            for choice in get_args(member):
                if text == str(choice):
                    return choice
    for member in members:
        try:
            return _parse_member(text, member)
        except CastError:
            continue
    raise CastError(f"{describe(annotation)}, not {text!r}")


def check_value(value: Any, annotation: Any) -> Any:
    """`value` in the annotation's own type, if it fits without loss."""
    for member in _members(annotation):
        try:
            return _check_member(value, member)
        except CastError:
            continue
    raise CastError(f"{describe(annotation)}, not {value!r}")


def describe(annotation: Any) -> str:
    """The annotation in words, for people: "a whole number or None"."""
    return " or ".join(map(_describe_member, reversed(_members(annotation))))


def _members(annotation: Any) -> list[Any]:
    """The union's members, the most specific first; a lone annotation is a union of one."""
    is_union = get_origin(annotation) in (Union, UnionType)
    members = list(get_args(annotation)) if is_union else [annotation]
    simple = {kind: rank for rank, kind in enumerate(_MOST_SPECIFIC_FIRST)}
    return sorted(members, key=lambda member: simple.get(member, 0))


def _parse_member(text: str, member: Any) -> Any:
    word = text.strip().lower()
    if member is str:
        return text
    if member is NoneType and word in _NONE_WORDS:
        return None
    if member is bool and word in _TRUE_WORDS | _FALSE_WORDS:
        return word in _TRUE_WORDS
    if member is int and _INTEGER.fullmatch(text):
        return int(text)
    if member is float and _FLOAT.fullmatch(text):
        return _check_member(float(text), float)
    if get_origin(member) is list:
        return _parse_list(text, member)
    raise CastError(f"{describe(member)}, not {text!r}")


def _parse_list(text: str, member: Any) -> list[Any]:
    """A JSON list, or items separated by commas within brackets: [a,b]."""
    if not (text.startswith("[") and text.endswith("]")):
        raise CastError(f"{describe(member)}, not {text!r}")
    try:
        items = json.loads(text)
    except json.JSONDecodeError:
        (item_annotation,) = get_args(member)
        inner = text[1:-1].strip()
        return [parse_text(item.strip(), item_annotation) for item in inner.split(",") if inner]
    return check_value(items, member)


def _check_member(value: Any, member: Any) -> Any:
    is_bool = isinstance(value, bool)
    origin = get_origin(member)
    if origin is Literal:
        for choice in get_args(member):
            if value == choice and type(value) is type(choice):
                return choice
    elif origin is list and isinstance(value, list | tuple):
        (item_annotation,) = get_args(member)
        return [check_value(item, item_annotation) for item in value]
    elif member is NoneType and value is None:
        return None
    elif member is bool and is_bool:
        return value
    elif member is int and isinstance(value, numbers.Integral) and not is_bool:
        return int(value)
    elif member is float and isinstance(value, numbers.Real) and not is_bool:
        if math.isfinite(value):
            return float(value)
    elif member is str and isinstance(value, str | os.PathLike):
        return str(os.fspath(value))
    raise CastError(f"{describe(member)}, not {value!r}")


def _describe_member(member: Any) -> str:
    origin = get_origin(member)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(member))
    if origin is list:
        (item_annotation,) = get_args(member)
        return f"a list, each item {describe(item_annotation)}"
    words = {
        str: "text",
        bool: "True or False",
        int: "a whole number",
        float: "a number",
        NoneType: "None",
    }
    if member not in words:
        raise TypeError(f"options can't have the annotation {member!r}")
    return words[member]
