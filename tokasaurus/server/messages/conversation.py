"""The conversation of a /v1/messages request as chat templates expect it."""

from collections.abc import Iterator
from typing import Any

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.sampling_params import shown
from tokasaurus.server.tools.definitions import (
    Tool,
    check_names,
    checked_function,
    checked_list,
)
from tokasaurus.server.tools.tool_choice import NO_TOOLS, ToolUse, forced_use, named_use

_NO_FUNCTION_FIELDS = frozenset({"type", "cache_control"})


def chat_messages(messages: Any, system: Any) -> list[dict[str, Any]]:
    """Raises InvalidRequestError that names the block."""
    if not isinstance(messages, list) or not messages:
        raise InvalidRequestError(
            "'messages' must be a list of at least one message.", param="messages"
        )
    converted: list[dict[str, Any]] = []
    if system is not None:
        converted.append({"role": "system", "content": _text_of(system, "system")})
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("user", "assistant"):
            raise InvalidRequestError(
                f"'{where}' must be an object whose role is user or assistant.", param=where
            )
        blocks = list(_blocks(message.get("content"), f"{where}.content", _BLOCKS_OF[role]))
        converted += _of_user(blocks) if role == "user" else [_of_assistant(blocks)]
    if messages[-1]["role"] == "assistant":
        raise InvalidRequestError(
            "The last message must be the user's: this server does not continue an assistant's.",
            param="messages",
        )
    return converted


def message_tool_use(tools: Any, choice: Any) -> ToolUse:
    """Raises InvalidRequestError that names the field."""
    checked = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(checked_list(tools))]
    check_names(checked)
    choice = {"type": "auto"} if choice is None else choice
    if not isinstance(choice, dict):
        raise InvalidRequestError("'tool_choice' must be an object.", param="tool_choice")
    kind = choice.get("type")
    known = {"type", "name"} if kind == "tool" else {"type"}
    extra = sorted(set(choice) - known - {"disable_parallel_tool_use"})
    is_serial = choice.get("disable_parallel_tool_use", False)
    if extra or not isinstance(is_serial, bool):
        raise InvalidRequestError(
            "'tool_choice' takes only a type, a boolean disable_parallel_tool_use and, with type "
            "'tool', a name.",
            param="tool_choice",
        )
    if kind == "auto":
        return ToolUse(offered=tuple(checked), parallel=not is_serial)
    if kind == "none":
        return NO_TOOLS
    if kind == "any":
        return forced_use(checked, parallel=not is_serial)
    if kind == "tool":
        return named_use(checked, choice.get("name"))
    raise InvalidRequestError(
        f"'tool_choice' must be of type auto, any, tool or none, not {shown(kind)}.",
        param="tool_choice",
    )


def _tool(tool: Any, where: str) -> Tool:
    kind = tool.get("type") if isinstance(tool, dict) else tool
    if not isinstance(tool, dict) or kind not in (None, "custom"):
        raise InvalidRequestError(
            f"'{where}' must be a tool of type 'custom', not {shown(kind)}.", param=where
        )
    if not isinstance(tool.get("input_schema"), dict):
        raise InvalidRequestError(
            f"'{where}.input_schema' must be a JSON schema of an object.",
            param=f"{where}.input_schema",
        )
    function = {name: value for name, value in tool.items() if name not in _NO_FUNCTION_FIELDS}
    return checked_function(function, where, parameters_key="input_schema")


def _of_user(blocks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Tool results are messages of their own, in their places."""
    texts: list[str] = []
    for block in blocks:
        if block["type"] == "text":
            texts.append(block["text"])
            continue
        if texts:
            yield {"role": "user", "content": "\n".join(texts)}
            texts = []
        yield {"role": "tool", "tool_call_id": block["tool_use_id"], "content": block["content"]}
    if texts or not blocks:
        yield {"role": "user", "content": "\n".join(texts)}


def _of_assistant(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    texts = [b["text"] for b in blocks if b["type"] == "text"]
    thoughts = [b["thinking"] for b in blocks if b["type"] == "thinking"]
    calls = [
        {
            "id": b["id"],
            "type": "function",
            "function": {"name": b["name"], "arguments": b["input"]},
        }
        for b in blocks
        if b["type"] == "tool_use"
    ]
    message: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


_BLOCK_FIELDS: dict[str, dict[str, type]] = {
    "text": {"text": str},
    "thinking": {"thinking": str},
    "tool_use": {"id": str, "name": str, "input": dict},
    "tool_result": {"tool_use_id": str},
}
_BLOCKS_OF = {"assistant": ("text", "thinking", "tool_use"), "user": ("text", "tool_result")}


def _blocks(content: Any, where: str, kinds: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    if isinstance(content, str):
        yield {"type": "text", "text": content}
        return
    if not isinstance(content, list):
        raise InvalidRequestError(f"'{where}' must be a string or a list of blocks.", param=where)
    for index, block in enumerate(content):
        place = f"{where}[{index}]"
        kind = block.get("type") if isinstance(block, dict) else None
        if kind not in kinds:
            raise InvalidRequestError(
                f"'{place}' must be a block of type {' or '.join(kinds)}, not {shown(kind)}; this "
                "model reads nothing else there.",
                param=place,
            )
        for name, wanted in _BLOCK_FIELDS[kind].items():
            if not isinstance(block.get(name), wanted):
                raise InvalidRequestError(
                    f"'{place}.{name}' must be {_IN_WORDS[wanted]}.", param=f"{place}.{name}"
                )
        if kind == "tool_result":
            result = block.get("content")
            text = "" if result is None else _text_of(result, f"{place}.content")
            block = {**block, "content": text}
        yield block


_IN_WORDS: dict[type, str] = {str: "a string", dict: "an object"}


def _text_of(content: Any, where: str) -> str:
    return "\n".join(block["text"] for block in _blocks(content, where, ("text",)))
