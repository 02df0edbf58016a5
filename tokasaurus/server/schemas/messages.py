"""POST /v1/messages, in the form of Anthropic's API."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.reasoning.effort import EFFORTS
from tokasaurus.server.sampling_params import SamplingParams
from tokasaurus.server.schemas.sampling_fields import describe_ranges
from tokasaurus.server.schemas.structured_fields import text_format_output
from tokasaurus.server.structured_output import StructuredOutput
from tokasaurus.server.tools.definitions import NAME_PATTERN


def _block_schema(kind: str, **fields: dict[str, Any]) -> dict[str, Any]:
    properties = {"type": {"const": kind}, **fields}
    return {"type": "object", "properties": properties, "required": list(properties)}


_STRING = {"type": "string"}
_TEXT_SCHEMA = _block_schema("text", text=_STRING)
_TEXTS_SCHEMA = {"anyOf": [_STRING, {"type": "array", "items": _TEXT_SCHEMA}]}


def _message_schema(role: str, *blocks: dict[str, Any]) -> dict[str, Any]:
    content = {"anyOf": [_STRING, {"type": "array", "items": {"anyOf": [_TEXT_SCHEMA, *blocks]}}]}
    return {
        "type": "object",
        "properties": {"role": {"const": role}, "content": content},
        "required": ["role", "content"],
    }


_MESSAGES_SCHEMA = {
    "type": "array",
    "minItems": 1,
    "items": {
        "anyOf": [
            _message_schema(
                "user", _block_schema("tool_result", tool_use_id=_STRING, content=_TEXTS_SCHEMA)
            ),
            _message_schema(
                "assistant",
                _block_schema("thinking", thinking=_STRING),
                _block_schema("tool_use", id=_STRING, name=_STRING, input={"type": "object"}),
            ),
        ]
    },
}
_SYSTEM_SCHEMA = {"anyOf": [_TEXTS_SCHEMA, {"type": "null"}]}
_TOOLS_SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "pattern": NAME_PATTERN},
            "description": _STRING,
            "input_schema": {"type": "object"},
            "strict": {"type": ["boolean", "null"]},
            "type": {"enum": ["custom", None]},
            "cache_control": {"type": ["object", "null"]},
        },
        "required": ["name", "input_schema"],
        "additionalProperties": False,
    },
}
_CHOICE_PROPERTIES = {"disable_parallel_tool_use": {"type": "boolean"}}
_TOOL_CHOICE_SCHEMA = {
    "anyOf": [
        {
            "type": "object",
            "properties": {"type": {"enum": ["auto", "any", "none"]}, **_CHOICE_PROPERTIES},
            "required": ["type"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {"type": {"const": "tool"}, "name": _STRING, **_CHOICE_PROPERTIES},
            "required": ["type", "name"],
            "additionalProperties": False,
        },
        {"type": "null"},
    ]
}
_STOP_SCHEMA = {"type": "string", "minLength": 1}
_THINKING_SCHEMA = {"enum": [None, {"type": "disabled"}, {"type": "adaptive"}]}


_OUTPUT_CONFIG_SCHEMA = {
    "anyOf": [
        {
            "type": "object",
            "properties": {
                "format": {
                    "anyOf": [
                        {
                            "type": "object",
                            "properties": {
                                "type": {"const": "json_schema"},
                                "schema": {"type": "object"},
                            },
                            "required": ["type", "schema"],
                            "additionalProperties": False,
                        },
                        {"type": "null"},
                    ]
                },
                "effort": {"enum": [None, *EFFORTS]},
            },
            "additionalProperties": False,
        },
        {"type": "null"},
    ]
}


class CountTokensRequest(BaseModel):
    """What a prompt is made of."""

    model_config = ConfigDict(strict=True, extra="forbid", title="CountTokensRequest")

    model: str | None = None
    messages: Annotated[Any, WithJsonSchema(_MESSAGES_SCHEMA)]
    system: Annotated[Any, WithJsonSchema(_SYSTEM_SCHEMA)] = None
    tools: Annotated[Any, WithJsonSchema({"anyOf": [_TOOLS_SCHEMA, {"type": "null"}]})] = None
    tool_choice: Annotated[Any, WithJsonSchema(_TOOL_CHOICE_SCHEMA)] = None
    thinking: Annotated[Any, WithJsonSchema(_THINKING_SCHEMA)] = None
    output_config: Annotated[Any, WithJsonSchema(_OUTPUT_CONFIG_SCHEMA)] = Field(
        None, description="A format that the text has to match, and an effort of reasoning."
    )

    @property
    def effort(self) -> Any:
        return self._output_options().get("effort")

    def text_output(self) -> StructuredOutput | None:
        """What the text has to match. Raises InvalidRequestError if that can't be enforced."""
        param = "output_config.format"
        wanted = self._output_options().get("format")
        if wanted is None:
            return None
        if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
            raise InvalidRequestError(f"{param!r} must be of type 'json_schema'.", param=param)
        return text_format_output(wanted, param=param)

    def _output_options(self) -> dict[str, Any]:
        options = {} if self.output_config is None else self.output_config
        if not isinstance(options, dict) or options.keys() - {"format", "effort"}:
            raise InvalidRequestError(
                "'output_config' takes only a format and an effort.", param="output_config"
            )
        return options


class MessagesRequest(CountTokensRequest):
    model_config = ConfigDict(
        strict=True, extra="forbid", title="MessagesRequest", json_schema_extra=describe_ranges
    )

    max_tokens: int = Field(description="Most output tokens, at least 1.")
    stop_sequences: list[Annotated[str, WithJsonSchema(_STOP_SCHEMA)]] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: dict[str, Any] | None = Field(None, description="Accepted, without effect.")
    service_tier: Literal["auto", "standard_only"] | None = None

    def sampling_params(self) -> SamplingParams:
        """Raises InvalidRequestError for values out of range."""
        if self.max_tokens < 1:
            raise InvalidRequestError(
                f"'max_tokens' must be at least 1, not {self.max_tokens}.", param="max_tokens"
            )
        values = {
            name: value
            for name in ("temperature", "top_p", "top_k")
            if (value := getattr(self, name)) is not None
        }
        return SamplingParams(
            max_tokens=self.max_tokens,
            stop=self.stop_sequences or (),
            structured_output=self.text_output(),
            **values,
        )


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class TextBlock(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class ThinkingBlock(msgspec.Struct, tag_field="type", tag="thinking"):
    thinking: str
    signature: str = ""


class ToolUseBlock(msgspec.Struct, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


ContentBlock = TextBlock | ThinkingBlock | ToolUseBlock


class MessageUsage(msgspec.Struct, kw_only=True):
    input_tokens: int
    """Those that were not cached."""
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens: int


class Message(msgspec.Struct, kw_only=True, tag_field="type", tag="message"):
    id: str
    role: str = "assistant"
    model: str
    content: list[ContentBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(msgspec.Struct):
    input_tokens: int


class MessageStart(msgspec.Struct, tag_field="type", tag="message_start"):
    message: Message


class ContentBlockStart(msgspec.Struct, tag_field="type", tag="content_block_start"):
    index: int
    content_block: ContentBlock


class TextDelta(msgspec.Struct, tag_field="type", tag="text_delta"):
    text: str


class ThinkingDelta(msgspec.Struct, tag_field="type", tag="thinking_delta"):
    thinking: str


class InputJsonDelta(msgspec.Struct, tag_field="type", tag="input_json_delta"):
    partial_json: str


class ContentBlockDelta(msgspec.Struct, tag_field="type", tag="content_block_delta"):
    index: int
    delta: TextDelta | ThinkingDelta | InputJsonDelta


class ContentBlockStop(msgspec.Struct, tag_field="type", tag="content_block_stop"):
    index: int


class StopDelta(msgspec.Struct):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, tag_field="type", tag="message_delta"):
    delta: StopDelta
    usage: MessageUsage


class MessageStop(msgspec.Struct, tag_field="type", tag="message_stop"):
    pass


class MessageErrorBody(msgspec.Struct):
    type: str
    message: str
    param: str | UnsetType = UNSET


class MessageError(msgspec.Struct, tag_field="type", tag="error"):
    error: MessageErrorBody
