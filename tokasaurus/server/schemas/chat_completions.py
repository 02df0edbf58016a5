"""POST /v1/chat/completions."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import ConfigDict, Field, WithJsonSchema

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.reasoning.effort import EFFORTS
from tokasaurus.server.sampling_params import MAX_LOGPROBS, SamplingParams
from tokasaurus.server.schemas.prompt_logprobs import PromptLogprobs
from tokasaurus.server.schemas.sampling_fields import SamplingFields
from tokasaurus.server.schemas.usage import Usage
from tokasaurus.server.tools.definitions import TOOLS_SCHEMA
from tokasaurus.server.tools.tool_choice import CHAT_TOOL_CHOICE_SCHEMA

_TEXT_PART_SCHEMA = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
_TEXTS_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": _TEXT_PART_SCHEMA}]}
_CALL_SCHEMA = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "arguments": {"type": "string"}},
            "required": ["name", "arguments"],
        },
    },
    "required": ["id", "type", "function"],
}
MESSAGES_SCHEMA = {
    "type": "array",
    "minItems": 1,
    "items": {
        "anyOf": [
            {
                "type": "object",
                "properties": {
                    "role": {"enum": ["system", "developer", "user", "tool", "function"]},
                    "content": _TEXTS_SCHEMA,
                },
                "required": ["role", "content"],
            },
            {
                "type": "object",
                "properties": {
                    "role": {"const": "assistant"},
                    "content": {"anyOf": [_TEXTS_SCHEMA, {"type": "null"}]},
                    "tool_calls": {
                        "anyOf": [{"type": "array", "items": _CALL_SCHEMA}, {"type": "null"}]
                    },
                },
                "required": ["role"],
            },
        ]
    },
}


class ChatCompletionRequest(SamplingFields):
    model_config = ConfigDict(title="ChatCompletionRequest")

    messages: Annotated[Any, WithJsonSchema(MESSAGES_SCHEMA)]
    max_completion_tokens: int | None = Field(None, json_schema_extra={"minimum": 1})
    logprobs: bool | None = None
    top_logprobs: int | None = Field(
        None,
        description="Needs logprobs.",
        json_schema_extra={"minimum": 0, "maximum": MAX_LOGPROBS},
    )
    tools: Annotated[Any, WithJsonSchema({"anyOf": [TOOLS_SCHEMA, {"type": "null"}]})] = None
    tool_choice: Annotated[Any, WithJsonSchema(CHAT_TOOL_CHOICE_SCHEMA)] = None
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call.")
    reasoning_effort: str | None = Field(
        None,
        description="Refused where the model's chat template has no such choice.",
        json_schema_extra={"enum": [None, *EFFORTS]},
    )
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = Field(
        None, description="Go on with the last message, which is the assistant's."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Variables for the model's chat template."
    )

    def sampling_params(self) -> SamplingParams:
        """Raises InvalidRequestError for values out of range, or that contradict each other."""
        values = self.sampling_values()
        values["logprobs"] = self._num_logprobs()
        new, old = self.max_completion_tokens, self.max_tokens
        for name, value in (("max_completion_tokens", new), ("max_tokens", old)):
            if value is None:
                continue
            if value < 1:
                raise InvalidRequestError(f"{name!r} must be at least 1, not {value}.", param=name)
            values["max_tokens"] = value
        if new is not None and old is not None and new != old:
            raise InvalidRequestError(
                "'max_tokens' and 'max_completion_tokens' differ; give only the latter.",
                param="max_tokens",
            )
        return SamplingParams(**values)

    def _num_logprobs(self) -> int | None:
        if self.top_logprobs is None:
            return 0 if self.logprobs else None
        if not self.logprobs:
            raise InvalidRequestError(
                "'top_logprobs' may only be given when 'logprobs' is true.", param="top_logprobs"
            )
        if not 0 <= self.top_logprobs <= MAX_LOGPROBS:
            raise InvalidRequestError(
                f"'top_logprobs' must be an integer between 0 and {MAX_LOGPROBS}, not "
                f"{self.top_logprobs}.",
                param="top_logprobs",
            )
        return self.top_logprobs


ChatFinishReason = Literal["stop", "length", "tool_calls"]


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[ChatTokenLogprob]
    refusal: None = None


class CalledFunction(msgspec.Struct):
    name: str
    arguments: str
    """JSON, as the model wrote it."""


class ToolCall(msgspec.Struct, kw_only=True):
    id: str
    type: str = "function"
    function: CalledFunction


class ChatMessage(msgspec.Struct):
    content: str | None
    role: str = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, kw_only=True):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason


class ChatCompletion(msgspec.Struct, kw_only=True):
    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class CalledFunctionDelta(msgspec.Struct):
    arguments: str
    name: str | UnsetType = UNSET


class ToolCallDelta(msgspec.Struct, kw_only=True):
    index: int
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: CalledFunctionDelta


class ChatDelta(msgspec.Struct):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, kw_only=True):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason | None = None


class ChatChunk(msgspec.Struct, kw_only=True):
    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
