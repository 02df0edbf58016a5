"""Chat messages to prompt text, by the checkpoint's own Jinja template, in a sandbox.

Templates find the environment that Hugging Face documents for them: trimmed blocks, loop controls,
`tojson`, `raise_exception`, `strftime_now`, `{% generation %}`, and the special tokens by name.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tokasaurus.errors import InvalidRequestError, ModelError

_RESERVED = frozenset({"messages", "tools", "add_generation_prompt"})


class ChatTemplate:
    """A compiled template with the texts of the checkpoint's special tokens."""

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        *,
        origin: str,
        tools_source: str | None = None,
    ) -> None:
        """`origin` is where the template came from; `tools_source` is used where tools are given.

        Raises ModelError if one of them does not compile.
        """
        self.source = source
        self._all_sources = source if tools_source is None else f"{source}\n{tools_source}"
        self._special_tokens = dict(special_tokens)
        environment = _new_environment()
        try:
            self._template = environment.from_string(source)
            self._tools_template = (
                self._template if tools_source is None else environment.from_string(tools_source)
            )
        except jinja2.TemplateError as error:
            raise ModelError(
                f"The chat template of {origin} has an error ({error}); give chat_template= a file "
                "with a corrected one."
            ) from error
        for template in {self._template, self._tools_template}:
            # Rendering copies them, which takes long from the chain of mappings that jinja keeps.
            template.globals = dict(template.globals)

    @classmethod
    def load(
        cls,
        folder: Path,
        settings: Mapping[str, Any],
        special_tokens: Mapping[str, str],
        *,
        override: str | None = None,
    ) -> "ChatTemplate | None":
        """From the file `override`, else chat_template.jinja, else tokenizer_config.json.

        None if there is no template. Raises ModelError if it can't be read or compiled.
        """
        if override is not None:
            return cls(_read(Path(override).expanduser()), special_tokens, origin=override)
        file = folder / "chat_template.jinja"
        if file.is_file():
            return cls(_read(file), special_tokens, origin=str(file))
        declared = settings.get("chat_template")
        source = _named(declared, "default")
        if source is None:
            return None
        return cls(
            source,
            special_tokens,
            origin=f"{folder}/tokenizer_config.json",
            tools_source=_named(declared, "tool_use") if isinstance(declared, list) else None,
        )

    def mentions(self, word: str) -> bool:
        """Whether the template's source has the word, so that it may know such a role."""
        return word in self._all_sources

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt. Raises InvalidRequestError for what the template refuses or can't render."""
        reserved = sorted(_RESERVED & set(variables or ()))
        if reserved:
            raise InvalidRequestError(
                f"chat_template_kwargs must not contain {reserved[0]!r}; it is set by the request "
                "itself.",
                param="chat_template_kwargs",
            )
        values = {
            **self._special_tokens,
            **(variables or {}),
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return (self._tools_template if tools else self._template).render(values)
        except jinja2.TemplateError as error:
            raise InvalidRequestError(
                f"The model's chat template refuses these messages: {error}", param="messages"
            ) from error
        except Exception as error:
            # Whatever else comes out of a template is caused by the values it was given.
            raise InvalidRequestError(
                "The model's chat template can't render these messages "
                f"({type(error).__name__}: {error}).",
                param="messages",
            ) from error


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"The chat template {file} can't be read ({error}).") from error


def _named(declared: Any, name: str) -> str | None:
    """tokenizer_config.json holds one template, or a list of named ones."""
    if isinstance(declared, list):
        named = {t.get("name"): t.get("template") for t in declared if isinstance(t, dict)}
        declared = named.get(name)
    return declared if isinstance(declared, str) else None


class _GenerationBlock(Extension):
    """`{% generation %}` marks what an assistant wrote, for training; here it just renders."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _new_environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which models were not trained on."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().astimezone().strftime(format)
