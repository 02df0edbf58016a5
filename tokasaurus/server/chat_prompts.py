"""The prompt of a chat: its messages and tools as the model's own template renders them."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.chat_messages import normalize_messages
from tokasaurus.server.state import ServerState

_END = secrets.token_hex(16)
"""Stands at the end of a message that is to be continued; what a template puts behind it goes."""


def render_chat(
    state: ServerState,
    messages: Any,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool | None = None,
    continue_final_message: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The text. Raises InvalidRequestError for what is no chat, or what the template refuses.

    `continue_final_message`: it ends with the last message's text, which is the assistant's.
    `add_generation_prompt` is true by default, where no message is continued.
    """
    template = state.chat_template
    if template is None:
        raise InvalidRequestError(
            f"{state.model_name!r} has no chat template; use /v1/completions, or start the server "
            "with chat_template=FILE.",
            param="messages",
        )
    normalized = normalize_messages(messages, developer_role=template.mentions("developer"))
    if continue_final_message:
        if add_generation_prompt:
            raise InvalidRequestError(
                "'continue_final_message' goes on with the last message, but "
                "'add_generation_prompt' begins another one; set only one of them.",
                param="continue_final_message",
            )
        _mark_end(normalized[-1], f"messages[{len(normalized) - 1}]")
    text = template.render(
        normalized,
        tools=tools,
        add_generation_prompt=add_generation_prompt is not False and not continue_final_message,
        variables=variables,
    )
    return _up_to_end(text) if continue_final_message else text


def continued_text(messages: Any) -> str:
    """What the model goes on with, of messages that were rendered to be continued."""
    [last] = normalize_messages(messages[-1:], developer_role=True)
    text: str = last["content"]
    return text


def _mark_end(message: dict[str, Any], where: str) -> None:
    if message["role"] != "assistant" or message.get("tool_calls"):
        raise InvalidRequestError(
            "'continue_final_message' needs a last message that is the assistant's and calls no "
            f"tools, which '{where}' is not.",
            param="continue_final_message",
        )
    message["content"] += _END


def _up_to_end(text: str) -> str:
    rendered, mark, _ = text.rpartition(_END)
    if not mark:
        raise InvalidRequestError(
            "The model's chat template does not show the last message's text, so that it can't be "
            "continued; leave 'continue_final_message' out.",
            param="continue_final_message",
        )
    return rendered.replace(_END, "")
