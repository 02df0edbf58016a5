"""POST /tokenize and /detokenize, GET /tokenizer_info."""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.schemas.chat_completions import MESSAGES_SCHEMA
from tokasaurus.server.tools.definitions import TOOLS_SCHEMA

_CHAT_FIELDS = (
    "messages",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template_kwargs",
    "tools",
)
_PROMPT_SCHEMA = {
    "properties": {
        "prompt": {"type": "string"},
        **{name: {"type": "null"} for name in _CHAT_FIELDS},
    },
    "required": ["prompt"],
}
_CHAT_SCHEMA = {
    "properties": {"messages": MESSAGES_SCHEMA, "prompt": {"type": "null"}},
    "required": ["messages"],
}
_EITHER: dict[str, Any] = {"oneOf": [_PROMPT_SCHEMA, _CHAT_SCHEMA]}


class TokenizeRequest(BaseModel):
    """A text (`prompt`), or a chat (`messages`) as the model's template renders it."""

    model_config = ConfigDict(
        strict=True, extra="forbid", title="TokenizeRequest", json_schema_extra=_EITHER
    )

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[Any, WithJsonSchema({"anyOf": [MESSAGES_SCHEMA, {"type": "null"}]})] = None
    add_special_tokens: bool | None = Field(
        None, description="Default: true for a prompt, false for messages."
    )
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Annotated[Any, WithJsonSchema({"anyOf": [TOOLS_SCHEMA, {"type": "null"}]})] = None
    return_token_strs: bool | None = None

    def check(self) -> None:
        """Raises InvalidRequestError unless it is either a text or a chat."""
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequestError("Give either 'prompt' or 'messages'.", param="prompt")
        if self.messages is None:
            for name in _CHAT_FIELDS:
                if getattr(self, name) is not None:
                    raise InvalidRequestError(
                        f"{name!r} may only be given together with 'messages'.", param=name
                    )


class Tokenized(msgspec.Struct, kw_only=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | UnsetType = UNSET
    """Parts of characters show as U+FFFD."""


class DetokenizeRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", title="DetokenizeRequest")

    model: str | None = None
    tokens: list[int]
    skip_special_tokens: bool | None = Field(None, description="Default: false.")


class Detokenized(msgspec.Struct, kw_only=True):
    prompt: str


class TokenizerInfo(msgspec.Struct, kw_only=True):
    """What a client needs that tokenizes here and renders chats itself."""

    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    chat_template: str | None
    """Jinja, for chats without tools."""
