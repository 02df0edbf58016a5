"""The `input` and `tools` of a /v1/responses request as chat templates expect them, and back."""

from collections.abc import Sequence
from typing import Any

import msgspec

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.chat_messages import normalize_messages
from tokasaurus.server.sampling_params import shown
from tokasaurus.server.schemas.responses import (
    FunctionCallItem,
    MessageItem,
    OutputItem,
    ReasoningItem,
)
from tokasaurus.server.tools.definitions import (
    Tool,
    check_kind,
    check_names,
    checked_function,
    checked_list,
)

_TEXT_PARTS = ("input_text", "output_text", "text", "refusal", "reasoning_text")
_ROLES = ("user", "assistant", "system", "developer")


def input_messages(given: Any) -> list[dict[str, Any]]:
    """Chat messages. Raises InvalidRequestError that names the item."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise InvalidRequestError(
            "'input' must be a string or a list of at least one item.", param="input"
        )
    conversation = _Conversation()
    for index, item in enumerate(given):
        where = f"input[{index}]"
        if not isinstance(item, dict):
            raise InvalidRequestError(f"'{where}' must be an object.", param=where)
        kind = item.get("type", "message")
        read = _READERS.get(kind) if isinstance(kind, str) else None
        if read is None:
            raise InvalidRequestError(
                f"'{where}' is an item of type {shown(kind)}; this server takes "
                f"{', '.join(_READERS)}.",
                param=where,
            )
        read(conversation, item, where)
    return conversation.messages


def output_messages(output: list[OutputItem]) -> list[dict[str, Any]]:
    """What the model said, for the next turn."""
    conversation = _Conversation()
    for item in output:
        match item:
            case MessageItem():
                conversation.add_text("".join(part.text for part in item.content))
            case ReasoningItem():
                conversation.add_reasoning("".join(part.text for part in item.content))
            case FunctionCallItem():
                conversation.add_call(item.call_id, item.name, item.arguments)
    return [message for message in conversation.messages if _is_readable(message)]


def response_tools(tools: Any) -> list[Tool]:
    """Null is none. Raises InvalidRequestError that names the field."""
    checked: list[Tool] = []
    for index, tool in enumerate(checked_list(tools)):
        where = f"tools[{index}]"
        check_kind(tool, where)
        fields = {name: value for name, value in tool.items() if name != "type"}
        checked.append(checked_function(fields, where))
    check_names(checked)
    return checked


def shown_tools(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """As a response object repeats them."""
    return [
        {
            "type": "function",
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
            "strict": tool.is_strict,
        }
        for tool in tools
    ]


class _Conversation:
    """What an assistant thinks, says and calls in a row is one message for a template."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def add(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    def add_reasoning(self, text: str) -> None:
        self.add({"role": "assistant", "content": "", "reasoning_content": text})

    def add_text(self, text: str) -> None:
        last = self.messages[-1] if self.messages else {}
        is_open = last.get("role") == "assistant" and not last.get("tool_calls")
        if is_open and not last["content"]:
            last["content"] = text
        else:
            self.add({"role": "assistant", "content": text})

    def add_call(self, call_id: str, name: str, arguments: str) -> None:
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self.add({"role": "assistant", "content": ""})
        function = {"name": name, "arguments": arguments}
        call = {"id": call_id, "type": "function", "function": function}
        self.messages[-1].setdefault("tool_calls", []).append(call)

    def read_message(self, item: dict[str, Any], where: str) -> None:
        role = item.get("role")
        if role not in _ROLES:
            raise InvalidRequestError(
                f"'{where}.role' must be one of {', '.join(_ROLES)}.", param=f"{where}.role"
            )
        text = _text_of(item.get("content"), f"{where}.content")
        if role == "assistant":
            self.add_text(text)
        else:
            self.add({"role": role, "content": text})

    def read_reasoning(self, item: dict[str, Any], where: str) -> None:
        content = item.get("content")
        if content is not None:
            self.add_reasoning(_text_of(content, f"{where}.content"))

    def read_call(self, item: dict[str, Any], where: str) -> None:
        values = []
        for name in ("call_id", "name", "arguments"):
            if not isinstance(value := item.get(name), str):
                raise InvalidRequestError(
                    f"'{where}.{name}' must be a string.", param=f"{where}.{name}"
                )
            values.append(value)
        try:
            msgspec.json.decode(values[2] or "{}")
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(
                f"'{where}.arguments' is not JSON.", param=f"{where}.arguments"
            ) from error
        self.add_call(*values)

    def read_call_output(self, item: dict[str, Any], where: str) -> None:
        call_id = item.get("call_id")
        if not isinstance(call_id, str):
            raise InvalidRequestError(
                f"'{where}.call_id' must be a string.", param=f"{where}.call_id"
            )
        text = _text_of(item.get("output"), f"{where}.output")
        self.add({"role": "tool", "tool_call_id": call_id, "content": text})


_READERS = {
    "message": _Conversation.read_message,
    "function_call": _Conversation.read_call,
    "function_call_output": _Conversation.read_call_output,
    "reasoning": _Conversation.read_reasoning,
}


def _text_of(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequestError(
            f"'{where}' must be a string or a list of text parts.", param=where
        )
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("refusal" if kind == "refusal" else "text") if kind in _TEXT_PARTS else None
        if not isinstance(text, str):
            raise InvalidRequestError(
                f"'{where}[{index}]' must be a part with a text, of type input_text or "
                "output_text; this model reads nothing else.",
                param=f"{where}[{index}]",
            )
        texts.append(text)
    return "\n".join(texts)


def _is_readable(message: dict[str, Any]) -> bool:
    """A call that was cut off can't be shown to a template again."""
    try:
        normalize_messages([message], developer_role=True)
    except InvalidRequestError:
        return False
    return True
