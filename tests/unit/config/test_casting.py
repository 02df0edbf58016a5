"""Values fit their annotation exactly, or are refused; nothing is rounded, guessed or evaluated."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from tokasaurus.config.casting import CastError, check_value, describe, parse_text

Level = Literal["low", "high"]
AutoOrInt = Literal["auto"] | int


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("false", bool, False),
        ("F", bool, False),
        ("0", bool, False),
        ("T", bool, True),
        ("True", bool, True),
        ("1e3", str, "1e3"),
        ("None", str, "None"),
        ("(1+1)", str, "(1+1)"),
        ("7", str, "7"),
        ("", str, ""),
        ("7", str | None, "7"),
        ("None", str | None, None),
        ("none", None | str, None),
        ("-12", int, -12),
        ("1_000", int, 1000),
        ("3", float, 3.0),
        ("1e-3", float, 1e-3),
        (".5", float, 0.5),
        ("low", Level, "low"),
        ("auto", AutoOrInt, "auto"),
        ("3", AutoOrInt, 3),
        ("3", int | str, 3),
        ("3x", int | str, "3x"),
        ("2", Literal[1, 2], 2),
        ('["a", "b"]', list[str], ["a", "b"]),
        ("[a,b]", list[str], ["a", "b"]),
        ("[1, 2]", list[int], [1, 2]),
        ("[]", list[int], []),
    ],
)
def test_text_that_fits(text: str, annotation: Any, value: Any) -> None:
    parsed = parse_text(text, annotation)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "annotation"),
    [
        ("maybe", bool),
        ("2", bool),
        ("3.7", int),
        ("1e6", int),
        ("(1+1)", int),
        ("True", int),
        ("", int),
        ("None", int),
        ("nan", float),
        ("inf", float),
        ("1e999", float),
        ("(2.0)", float),
        ("medium", Level),
        ("Low", Level),
        ("3.5", AutoOrInt),
        ("abc", list[str]),
        ("[1, x]", list[int]),
        ("[1.5]", list[int]),
    ],
)
def test_text_that_does_not_fit(text: str, annotation: Any) -> None:
    with pytest.raises(CastError):
        parse_text(text, annotation)


@pytest.mark.parametrize(
    ("value", "annotation", "checked"),
    [
        (3, float, 3.0),
        (np.int32(4), int, 4),
        (np.float32(0.5), float, 0.5),
        (Path("a/b"), str, "a/b"),
        (None, int | None, None),
        (("a", "b"), list[str], ["a", "b"]),
        ("high", Level, "high"),
    ],
)
def test_object_that_fits(value: Any, annotation: Any, checked: Any) -> None:
    result = check_value(value, annotation)
    assert result == checked
    assert type(result) is type(checked)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (3.0, int),
        ("3", int),
        (True, int),
        (True, float),
        (float("nan"), float),
        (1, bool),
        ("false", bool),
        (1000.0, str),
        (None, str),
        ("abc", list[str]),
        (True, Literal[1]),
        (b"x", str),
    ],
)
def test_object_that_does_not_fit(value: Any, annotation: Any) -> None:
    if value == b"x":
        value = [value]
    with pytest.raises(CastError):
        check_value(value, annotation)


def test_descriptions_are_words() -> None:
    assert describe(int | None) == "a whole number or None"
    assert describe(Literal["auto"] | int) == "a whole number or one of auto"
    assert describe(list[int]) == "a list, each item a whole number"
    with pytest.raises(TypeError):
        describe(dict)
