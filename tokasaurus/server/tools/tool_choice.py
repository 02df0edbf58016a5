"""The `tool_choice` of a request: which tools the model sees, and which it has to call."""

from dataclasses import dataclass
from typing import Any

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.sampling_params import shown
from tokasaurus.server.tools.definitions import NAME_PATTERN, Tool

_NAME_PROPERTIES = {"name": {"type": "string", "pattern": NAME_PATTERN}}
_NAME_SCHEMA = {"type": "object", "properties": _NAME_PROPERTIES, "required": ["name"]}
_NAMED_FUNCTION_SCHEMA = {
    "type": "object",
    "properties": {"type": {"const": "function"}, "function": _NAME_SCHEMA},
    "required": ["type", "function"],
}
_NAMED_TOOL_SCHEMA = {
    "type": "object",
    "properties": {"type": {"const": "function"}, **_NAME_PROPERTIES},
    "required": ["type", "name"],
}


def _allowed_properties(tool_schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "mode": {"enum": ["auto", "required"]},
        "tools": {"type": "array", "minItems": 1, "items": tool_schema},
    }


def _choice_schema(named: dict[str, Any], allowed: dict[str, Any]) -> dict[str, Any]:
    allowed = {
        "type": "object",
        "properties": {"type": {"const": "allowed_tools"}, **allowed},
        "required": ["type", *allowed],
    }
    return {"anyOf": [{"enum": ["none", "auto", "required", None]}, named, allowed]}


CHAT_TOOL_CHOICE_SCHEMA = _choice_schema(
    _NAMED_FUNCTION_SCHEMA,
    {
        "allowed_tools": {
            "type": "object",
            "properties": _allowed_properties(_NAMED_FUNCTION_SCHEMA),
            "required": ["mode", "tools"],
        }
    },
)
RESPONSES_TOOL_CHOICE_SCHEMA = _choice_schema(
    _NAMED_TOOL_SCHEMA, _allowed_properties(_NAMED_TOOL_SCHEMA)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """What a turn does with its tools."""

    offered: tuple[Tool, ...] = ()
    """Those that the model sees."""
    forced: tuple[Tool, ...] = ()
    """It has to call one of these; empty: it decides."""
    is_named: bool = False
    """The client named the one that is forced."""
    parallel: bool = True
    """It may make several calls at once."""

    @property
    def max_calls(self) -> int | None:
        """None: any number."""
        return 1 if self.is_named or not self.parallel else None

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool.name for tool in self.offered)


NO_TOOLS = ToolUse()


def tool_use_of(tools: list[Tool], choice: Any, *, parallel: bool) -> ToolUse:
    """For OpenAI's forms, of chat completions and of responses.

    Raises InvalidRequestError, which names the field, for what can't be honoured.
    """
    if choice is None or choice == "auto":
        if not tools:
            return NO_TOOLS
        return ToolUse(offered=tuple(tools), parallel=parallel)
    if choice == "none":
        return NO_TOOLS
    if choice == "required":
        return forced_use(tools, parallel=parallel)
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "function":
        return named_use(tools, _name_of(choice, "tool_choice"))
    if kind == "allowed_tools":
        return _allowed_use(tools, choice, parallel=parallel)
    raise InvalidRequestError(
        "'tool_choice' must be 'none', 'auto', 'required', or an object of type 'function' or "
        f"'allowed_tools', not {shown(choice if kind is None else kind)}.",
        param="tool_choice",
    )


def forced_use(tools: list[Tool], *, parallel: bool) -> ToolUse:
    """One of them has to be called. Raises InvalidRequestError if there are none."""
    if not tools:
        raise InvalidRequestError(
            "'tool_choice' forces a call, but there are no 'tools'; give some.",
            param="tool_choice",
        )
    return ToolUse(offered=tuple(tools), forced=tuple(tools), parallel=parallel)


def named_use(tools: list[Tool], name: Any, *, param: str = "tool_choice") -> ToolUse:
    """The tool of that name has to be called. Raises InvalidRequestError if there is none."""
    named = _of_names(tools, [name], param)
    return ToolUse(offered=tuple(tools), forced=tuple(named), is_named=True)


def _allowed_use(tools: list[Tool], choice: dict[str, Any], *, parallel: bool) -> ToolUse:
    where = "tool_choice.allowed_tools" if "allowed_tools" in choice else "tool_choice"
    allowed = choice.get("allowed_tools", choice)
    entries = allowed.get("tools") if isinstance(allowed, dict) else None
    mode = allowed.get("mode") if isinstance(allowed, dict) else None
    if not isinstance(entries, list) or not entries or mode not in ("auto", "required"):
        raise InvalidRequestError(
            f"'{where}' must have a mode of 'auto' or 'required', and a list of at least one of "
            "the 'tools'.",
            param=where,
        )
    names = [_name_of(entry, f"{where}.tools[{i}]") for i, entry in enumerate(entries)]
    offered = _of_names(tools, names, where)
    if mode == "required":
        return forced_use(offered, parallel=parallel)
    return ToolUse(offered=tuple(offered), parallel=parallel)


def _name_of(entry: Any, where: str) -> str:
    """Chat completions write it inside a `function`, responses don't."""
    kind = entry.get("type") if isinstance(entry, dict) else None
    function = entry.get("function", entry) if kind == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise InvalidRequestError(
            f"'{where}' must be an object of type 'function' with the function's name.",
            param=where,
        )
    return name


def _of_names(tools: list[Tool], names: list[Any], param: str) -> list[Tool]:
    """Of these names, in their own order."""
    known = {tool.name for tool in tools}
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise InvalidRequestError(
                f"{param!r} names the tool {shown(name)}, which is none of 'tools'.", param=param
            )
    return [tool for tool in tools if tool.name in names]
