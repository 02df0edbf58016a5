"""The `tools` and `tool_choice` of a request, checked, in the form that chat templates expect."""

import re
from typing import Any

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.sampling_params import shown

MAX_TOOLS = 256
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
NAME_PATTERN = f"^{_NAME.pattern}$"
_FUNCTION_FIELDS = frozenset({"name", "description", "parameters", "strict"})
_NO_PARAMETERS = {"type": "object", "properties": {}}

TOOLS_SCHEMA = {
    "type": "array",
    "maxItems": MAX_TOOLS,
    "items": {
        "type": "object",
        "properties": {
            "type": {"const": "function"},
            "function": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "pattern": NAME_PATTERN},
                    "description": {"type": "string"},
                    "parameters": {"type": "object"},
                },
                "required": ["name"],
            },
        },
        "required": ["type", "function"],
    },
}
TOOL_CHOICE_SCHEMA = {"enum": ["none", "auto", None]}


def checked_tools(tools: Any) -> list[dict[str, Any]]:
    """Of a chat completion; null is none. Raises InvalidRequestError that names the field."""
    if tools is None:
        return []
    if not isinstance(tools, list):
        raise InvalidRequestError("'tools' must be a list of tools.", param="tools")
    if len(tools) > MAX_TOOLS:
        raise InvalidRequestError(
            f"'tools' must be at most {MAX_TOOLS} tools, not {len(tools)}.", param="tools"
        )
    checked: list[dict[str, Any]] = []
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind != "function":
            raise InvalidRequestError(
                f"'{where}' must be an object of type 'function', not {shown(kind)}.", param=where
            )
        extra = sorted(set(tool) - {"type", "function"})
        if extra:
            raise _unknown(f"{where}.{extra[0][:64]}")
        checked.append(checked_function(tool.get("function"), f"{where}.function"))
    names = [tool["function"]["name"] for tool in checked]
    if len(set(names)) < len(names):
        raise InvalidRequestError("'tools' has two tools of one name.", param="tools")
    return checked


def checked_function(function: Any, where: str) -> dict[str, Any]:
    """One tool. Raises InvalidRequestError that names the field."""
    if not isinstance(function, dict):
        raise InvalidRequestError(f"'{where}' must be an object.", param=where)
    extra = sorted(set(function) - _FUNCTION_FIELDS)
    if extra:
        raise _unknown(f"{where}.{extra[0][:64]}")
    name, description = function.get("name"), function.get("description")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequestError(
            f"'{where}.name' must be 1 to 64 letters, digits, dots, dashes and underscores.",
            param=f"{where}.name",
        )
    if not isinstance(description, str | None):
        raise InvalidRequestError(
            f"'{where}.description' must be a string.", param=f"{where}.description"
        )
    parameters = function.get("parameters")
    if not isinstance(parameters, dict | None):
        raise InvalidRequestError(
            f"'{where}.parameters' must be a JSON schema of an object.",
            param=f"{where}.parameters",
        )
    if function.get("strict"):
        raise InvalidRequestError(
            f"'{where}.strict' can't be true: this server does not enforce schemas; set it to "
            "false.",
            param=f"{where}.strict",
            code="unsupported_parameter",
        )
    checked = {"name": name, "description": description or "", "parameters": parameters}
    return {"type": "function", "function": checked | {"parameters": parameters or _NO_PARAMETERS}}


def check_tool_choice(choice: Any, *, has_tools: bool, param: str = "tool_choice") -> bool:
    """Whether the model may call tools. Raises InvalidRequestError for what can't be honoured."""
    if choice in (None, "auto", "none"):
        return has_tools and choice != "none"
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind in ("required", "any", "function", "tool"):
        raise InvalidRequestError(
            f"{param!r} can't force a call: this server does not enforce grammars; use 'auto' or "
            "'none'.",
            param=param,
            code="unsupported_parameter",
        )
    raise InvalidRequestError(
        f"{param!r} must be 'auto' or 'none', not {shown(choice)}.", param=param
    )


def _unknown(where: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Unrecognized request argument: '{where}'; remove it.",
        param=where,
        code="unknown_parameter",
    )
