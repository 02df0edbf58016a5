"""The `messages` of a chat request, in the form that chat templates expect."""

from typing import Any

import msgspec

from tokasaurus.errors import InvalidRequestError

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def normalize_messages(messages: Any, *, developer_role: bool) -> list[dict[str, Any]]:
    """Text parts joined by line breaks, arguments of tool calls as objects, results with a name.

    `developer_role`: the template knows it; otherwise such messages become the system's.
    Raises InvalidRequestError that names the message.
    """
    if not isinstance(messages, list) or not messages:
        raise InvalidRequestError(
            "'messages' must be a list of at least one message.", param="messages"
        )
    normalized = [_normalize(m, f"messages[{i}]") for i, m in enumerate(messages)]
    _name_tool_results(normalized)
    if not developer_role:
        for message in normalized:
            if message["role"] == "developer":
                message["role"] = "system"
    return normalized


def _name_tool_results(messages: list[dict[str, Any]]) -> None:
    """Some templates want the tool's name, which clients give with the call only."""
    names: dict[str, str] = {}
    for message in messages:
        for call in message.get("tool_calls", ()):
            if isinstance(call.get("id"), str):
                names[call["id"]] = call["function"]["name"]
        call_id = message.get("tool_call_id")
        if message["role"] == "tool" and isinstance(call_id, str) and call_id in names:
            message.setdefault("name", names[call_id])


def _normalize(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise InvalidRequestError(f"'{where}' must be an object.", param=where)
    role = message.get("role")
    if role not in _ROLES:
        raise InvalidRequestError(
            f"'{where}.role' must be one of {', '.join(_ROLES)}.", param=f"{where}.role"
        )
    content = message.get("content")
    tool_calls = message.get("tool_calls")
    normalized = dict(message)
    if content is None and role == "assistant":
        normalized["content"] = ""
    else:
        normalized["content"] = _text_of(content, f"{where}.content")
    if tool_calls is None or tool_calls == []:
        normalized.pop("tool_calls", None)
    else:
        normalized["tool_calls"] = _tool_calls(tool_calls, f"{where}.tool_calls")
    return normalized


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
        if kind not in ("text", "refusal"):
            what = f"of type {str(kind)[:40]!r}" if isinstance(kind, str) else "without a type"
            raise InvalidRequestError(
                f"'{where}[{index}]' is a part {what}, but this model reads only parts of type "
                "'text'.",
                param=f"{where}[{index}]",
            )
        text = part.get(kind)
        if not isinstance(text, str):
            raise InvalidRequestError(
                f"'{where}[{index}].{kind}' must be a string.", param=f"{where}[{index}].{kind}"
            )
        texts.append(text)
    return "\n".join(texts)


def _tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """Clients send arguments as JSON text; templates want what it says."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise InvalidRequestError(f"'{where}' must be a list of objects.", param=where)
    parsed = []
    for index, call in enumerate(calls):
        function = call.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidRequestError(
                f"'{where}[{index}].function' must be an object with a name.",
                param=f"{where}[{index}].function",
            )
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = msgspec.json.decode(arguments or "{}")
            except (ValueError, RecursionError) as error:
                raise InvalidRequestError(
                    f"'{where}[{index}].function.arguments' is not JSON.",
                    param=f"{where}[{index}].function.arguments",
                ) from error
        parsed.append({**call, "function": {**function, "arguments": arguments}})
    return parsed
