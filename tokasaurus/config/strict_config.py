"""A pydra config that can't be malformed: every assignment is checked against its annotation.

pydra gives the form (a class of annotated attributes) and the key=value syntax; parsing and casting
are ours, because pydra evaluates "(expr)", truncates 3.7 to 3 and takes "false" for true.
"""

import ast
import difflib
import functools
import inspect
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, Self, dataclass_transform

import msgspec
from pydra.config import ANNOTATIONS_INITIALIZED, Config

from tokasaurus.config.casting import CastError, check_value, describe, parse_text
from tokasaurus.errors import ConfigError


class Option(msgspec.Struct, frozen=True):
    """One option, as its class declares it."""

    name: str
    annotation: Any
    default: Any
    help: str
    """The doc string under the field, in one line."""


@dataclass_transform(kw_only_default=True)
class StrictConfig(Config):
    """Base of config classes. Options are given by keyword, by attribute, or as key=value texts.

    All of them raise ConfigError for an unknown name (naming the nearest one) and for a value that
    is not exactly of the annotated type. A subclass checks what spans options in `validate`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        for name, value in options.items():
            setattr(self, name, value)

    @classmethod
    def from_args(cls, args: Sequence[str]) -> Self:
        """Options from key=value texts, validated. The last of a repeated key wins."""
        config = cls()
        for arg in args:
            name, equals, text = arg.partition("=")
            if not equals:
                raise ConfigError(
                    f"{arg!r} is not an option: write options as key=value, "
                    f"for example {next(iter(cls.options()))}=..."
                )
            config._set(name, parse_text, text)
        config.validate()
        return config

    @classmethod
    def options(cls) -> dict[str, Option]:
        """All options by name, in the order of the source."""
        return _options(cls)  # type: ignore[arg-type]  # mypy takes a class for unhashable

    def validate(self) -> None:
        """Raises ConfigError if options contradict each other or are out of range."""

    def finalize(self) -> None:
        self.validate()

    def to_json(self) -> str:
        """All options as JSON, for `from_json` in another process."""
        return msgspec.json.encode(self.to_dict()).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        config = cls(**msgspec.json.decode(text))
        config.validate()
        return config

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.options()}

    def replace(self, **options: Any) -> Self:
        """A copy with some options changed."""
        return type(self)(**{**self.to_dict(), **options})

    def __setattr__(self, name: str, value: Any) -> None:
        if name == ANNOTATIONS_INITIALIZED:
            object.__setattr__(self, name, value)
        else:
            self._set(name, check_value, value)

    def _assign_maybe_cast(self, key: str, value: Any) -> None:
        """pydra's own way in; what it parsed must fit as it is."""
        setattr(self, key, value)

    def _set(self, name: str, cast: Any, value: Any) -> None:
        options = self.options()
        if name not in options:
            raise ConfigError(unknown_name_message("option", name, options))
        try:
            object.__setattr__(self, name, cast(value, options[name].annotation))
        except CastError as error:
            raise ConfigError(f"{name} must be {error}.") from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StrictConfig) and (
            (type(self), self.to_dict()) == (type(other), other.to_dict())
        )

    def __repr__(self) -> str:
        changed = (
            f"{name}={getattr(self, name)!r}"
            for name, option in self.options().items()
            if getattr(self, name) != option.default
        )
        return f"{type(self).__name__}({', '.join(changed)})"


def unknown_name_message(what: str, name: str, known: Iterable[str]) -> str:
    """One sentence that names the nearest of the known names."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(known)}."
    return f"There is no {what} {name!r}; {hint}"


def format_help(options: Iterable[Option], width: int = 100) -> str:
    """Each option with its default and what it does, for --help."""
    lines: list[str] = []
    for option in options:
        lines.append(f"  {option.name}={option.default}")
        kind = describe(option.annotation)
        body = f"{option.help} ({kind})" if kind != "text" else option.help
        lines += textwrap.wrap(body, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


@functools.cache
def _options(cls: type[StrictConfig]) -> dict[str, Option]:
    hints = {
        name: hint
        for base in reversed(cls.__mro__)
        if issubclass(base, StrictConfig) and base is not StrictConfig
        for name, hint in inspect.get_annotations(base).items()
    }
    helps = _field_doc_strings(cls)
    return {
        name: Option(name, annotation, getattr(cls, name), helps.get(name, ""))
        for name, annotation in hints.items()
    }


def _field_doc_strings(cls: type) -> dict[str, str]:
    """The string literal under each annotated field, from the classes' source."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not issubclass(base, StrictConfig) or base is StrictConfig:
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            match field, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    texts[name] = " ".join(text.split())
    return texts
