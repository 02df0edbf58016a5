"""The prompt of a chat: its messages and tools as the model's own template renders them."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.chat_messages import normalize_messages
from tokasaurus.server.state import ServerState


def render_chat(
    state: ServerState,
    messages: Any,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The text. Raises InvalidRequestError for what is no chat, or what the template refuses."""
    template = state.chat_template
    if template is None:
        raise InvalidRequestError(
            f"{state.model_name!r} has no chat template; use /v1/completions, or start the server "
            "with chat_template=FILE.",
            param="messages",
        )
    normalized = normalize_messages(messages, developer_role=template.mentions("developer"))
    return template.render(
        normalized,
        tools=tools,
        add_generation_prompt=add_generation_prompt,
        variables=variables,
    )
