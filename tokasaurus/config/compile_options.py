"""Reads torch_compile_config: how to compile, as key=value texts or one JSON object."""

import json
from dataclasses import dataclass, field
from typing import Any

from tokasaurus.config.strict_config import unknown_name_message
from tokasaurus.errors import ConfigError

MODES = ("default", "max-autotune-no-cudagraphs")
"""Of torch.compile; its others capture CUDA graphs of their own."""
BACKENDS = ("inductor", "aot_eager", "eager")
_OWN_GRAPHS = ("reduce-overhead", "max-autotune")

OptionValue = bool | int | float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileOptions:
    """What torch.compile is called with."""

    mode: str = "default"
    backend: str = "inductor"
    options: dict[str, OptionValue] = field(default_factory=dict)
    """The backend's own options, such as coordinate_descent_tuning; it knows their names."""


def read_compile_options(config: list[str] | str | None) -> CompileOptions:
    """Raises ConfigError for what can't be meant."""
    values = _values(config)
    mode = _choice("mode", values.pop("mode", "default"), MODES)
    backend = _choice("backend", values.pop("backend", "inductor"), BACKENDS)
    options = {_option_name(key): _option_value(key, value) for key, value in values.items()}
    if options and mode != "default":
        raise ConfigError(
            f"torch_compile_config: torch takes a mode or options, not both: drop mode={mode} or "
            f"{', '.join(options)}."
        )
    if backend != "inductor" and (options or mode != "default"):
        raise ConfigError(
            f"torch_compile_config: backend={backend} takes neither a mode nor options; "
            "drop them or the backend."
        )
    return CompileOptions(mode=mode, backend=backend, options=options)


def _values(config: list[str] | str | None) -> dict[str, Any]:
    if config is None:
        return {}
    if isinstance(config, str) and config.lstrip().startswith("{"):
        try:
            values = json.loads(config)
        except ValueError as error:
            raise ConfigError(f"torch_compile_config is not valid JSON: {error}.") from None
        nested = values.pop("options", {})
        if not isinstance(nested, dict):
            raise ConfigError('torch_compile_config: "options" must be an object.')
        return {**values, **{f"options.{key}": value for key, value in nested.items()}}
    texts = [config] if isinstance(config, str) else config
    values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(
                f"torch_compile_config: {text!r} is not key=value; for example "
                "mode=max-autotune-no-cudagraphs, options.coordinate_descent_tuning=true, or one "
                "JSON object."
            )
        values[key] = _parsed(value) if key.startswith("options.") else value
    return values


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _choice(key: str, value: Any, choices: tuple[str, ...]) -> str:
    if value in choices:
        return str(value)
    reason = f"choose one of {', '.join(choices)}"
    if value in _OWN_GRAPHS:
        reason += "; CUDA graphs are captured by use_cudagraphs"
    raise ConfigError(f"torch_compile_config: {key}={value} can't be used: {reason}.")


def _option_name(key: str) -> str:
    prefix, _, name = key.partition(".")
    if prefix != "options" or not name:
        known = ("mode", "backend", "options.NAME")
        raise ConfigError(f"torch_compile_config: {unknown_name_message('key', key, known)}")
    return name


def _option_value(key: str, value: Any) -> OptionValue:
    if isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(f"torch_compile_config: {key} must be a plain value, not {value!r}.")
