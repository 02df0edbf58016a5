"""The `tools` of a request, checked, in the form that chat templates expect."""

import re
from dataclasses import dataclass
from typing import Any

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.sampling_params import shown

MAX_TOOLS = 256
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
NAME_PATTERN = f"^{_NAME.pattern}$"
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
                    "strict": {"type": ["boolean", "null"]},
                },
                "required": ["name"],
                "additionalProperties": False,
            },
        },
        "required": ["type", "function"],
        "additionalProperties": False,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may call."""

    name: str
    description: str
    parameters: dict[str, Any]
    is_strict: bool
    """The client wants arguments to match the schema, whenever the model calls it."""
    parameters_param: str
    """What the client calls its schema."""

    def for_template(self) -> dict[str, Any]:
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
        }
        return {"type": "function", "function": function}


def checked_tools(tools: Any) -> list[Tool]:
    """Of a chat completion; null is none. Raises InvalidRequestError that names the field."""
    if tools is None:
        return []
    checked: list[Tool] = []
    for index, tool in enumerate(checked_list(tools)):
        where = f"tools[{index}]"
        check_kind(tool, where)
        extra = sorted(set(tool) - {"type", "function"})
        if extra:
            raise _unknown(f"{where}.{extra[0][:64]}")
        checked.append(checked_function(tool.get("function"), f"{where}.function"))
    check_names(checked)
    return checked


def checked_list(tools: Any) -> list[Any]:
    """Not too many of whatever they are."""
    if tools is None:
        return []
    if not isinstance(tools, list):
        raise InvalidRequestError("'tools' must be a list of tools.", param="tools")
    if len(tools) > MAX_TOOLS:
        raise InvalidRequestError(
            f"'tools' must be at most {MAX_TOOLS} tools, not {len(tools)}.", param="tools"
        )
    return tools


def check_kind(tool: Any, where: str) -> None:
    """OpenAI's forms know other types of tools, too."""
    kind = tool.get("type") if isinstance(tool, dict) else None
    if kind != "function":
        raise InvalidRequestError(
            f"'{where}' must be an object of type 'function', not {shown(kind)}.", param=where
        )


def check_names(tools: list[Tool]) -> None:
    """Each has its own."""
    if len({tool.name for tool in tools}) < len(tools):
        raise InvalidRequestError("'tools' has two tools of one name.", param="tools")


def checked_function(function: Any, where: str, *, parameters_key: str = "parameters") -> Tool:
    """One tool. Raises InvalidRequestError that names the field."""
    if not isinstance(function, dict):
        raise InvalidRequestError(f"'{where}' must be an object.", param=where)
    extra = sorted(set(function) - {"name", "description", "strict", parameters_key})
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
    parameters = function.get(parameters_key)
    if not isinstance(parameters, dict | None):
        raise InvalidRequestError(
            f"'{where}.{parameters_key}' must be a JSON schema of an object.",
            param=f"{where}.{parameters_key}",
        )
    is_strict = function.get("strict")
    if not isinstance(is_strict, bool | None):
        raise InvalidRequestError(
            f"'{where}.strict' must be true or false.", param=f"{where}.strict"
        )
    return Tool(
        name=name,
        description=description or "",
        parameters=parameters or _NO_PARAMETERS,
        is_strict=bool(is_strict),
        parameters_param=f"{where}.{parameters_key}",
    )


def _unknown(where: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Unrecognized request argument: '{where}'; remove it.",
        param=where,
        code="unknown_parameter",
    )
