"""POST /v1/responses: what it takes, and the response object."""

from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.reasoning.effort import EFFORTS
from tokasaurus.server.sampling_params import SamplingParams
from tokasaurus.server.schemas.sampling_fields import describe_ranges
from tokasaurus.server.schemas.structured_fields import TEXT_OPTIONS_SCHEMA, text_format_output
from tokasaurus.server.schemas.unsupported_fields import (
    describe_extra_fields,
    refuse_unsupported,
)
from tokasaurus.server.structured_output import StructuredOutput
from tokasaurus.server.tools.definitions import NAME_PATTERN
from tokasaurus.server.tools.tool_choice import RESPONSES_TOOL_CHOICE_SCHEMA

_STRING = {"type": "string"}
_PART_SCHEMA = {
    "type": "object",
    "properties": {"type": {"enum": ["input_text", "output_text"]}, "text": _STRING},
    "required": ["type", "text"],
}
_TEXTS_SCHEMA = {"anyOf": [_STRING, {"type": "array", "items": _PART_SCHEMA}]}
_THOUGHTS_SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"type": {"const": "reasoning_text"}, "text": _STRING},
        "required": ["type", "text"],
    },
}
_ITEM_SCHEMAS = [
    {
        "type": "object",
        "properties": {
            "type": {"const": "message"},
            "role": {"enum": ["user", "assistant", "system", "developer"]},
            "content": _TEXTS_SCHEMA,
        },
        "required": ["role", "content"],
    },
    {
        "type": "object",
        "properties": {
            "type": {"const": "function_call"},
            "call_id": _STRING,
            "name": _STRING,
            "arguments": _STRING,
        },
        "required": ["type", "call_id", "name", "arguments"],
    },
    {
        "type": "object",
        "properties": {
            "type": {"const": "function_call_output"},
            "call_id": _STRING,
            "output": _TEXTS_SCHEMA,
        },
        "required": ["type", "call_id", "output"],
    },
    {
        "type": "object",
        "properties": {
            "type": {"const": "reasoning"},
            "content": {"anyOf": [_THOUGHTS_SCHEMA, {"type": "null"}]},
        },
        "required": ["type"],
    },
]
_INPUT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"anyOf": _ITEM_SCHEMAS}, "minItems": 1},
    ]
}
_TOOLS_SCHEMA = {
    "anyOf": [
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "type": {"const": "function"},
                    "name": {"type": "string", "pattern": NAME_PATTERN},
                    "description": _STRING,
                    "parameters": {"type": ["object", "null"]},
                    "strict": {"type": ["boolean", "null"]},
                },
                "required": ["type", "name"],
                "additionalProperties": False,
            },
        },
        {"type": "null"},
    ]
}
_REASONING_SCHEMA = {
    "anyOf": [
        {
            "type": "object",
            "properties": {"effort": {"enum": [None, *EFFORTS]}, "summary": {"type": "null"}},
            "additionalProperties": False,
        },
        {"type": "null"},
    ]
}
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "context_management": ([],),
    "conversation": (),
    "include": ([],),
    "max_tool_calls": (),
    "moderation": (),
    "prompt": (),
    "service_tier": ("auto", "default"),
    "stream_options": ({}, {"include_obfuscation": False}, {"include_obfuscation": True}),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}


class TextFormat(msgspec.Struct, tag_field="type", tag="text"):
    pass


class JsonObjectFormat(msgspec.Struct, tag_field="type", tag="json_object"):
    pass


class JsonSchemaFormat(msgspec.Struct, kw_only=True, tag_field="type", tag="json_schema"):
    name: str
    description: str | None
    schema: dict[str, Any] | None
    strict: bool | None


class TextOptions(msgspec.Struct):
    format: TextFormat | JsonObjectFormat | JsonSchemaFormat = msgspec.field(
        default_factory=TextFormat
    )


def _describe(schema: dict[str, Any]) -> None:
    """Adds what the types of the fields don't say."""
    describe_ranges(schema)
    describe_extra_fields(schema, NEUTRAL_VALUES)


class ResponsesRequest(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="allow", title="ResponsesRequest", json_schema_extra=_describe
    )

    model: str | None = None
    input: Annotated[Any, WithJsonSchema(_INPUT_SCHEMA)]
    instructions: str | None = Field(None, description="A system message for this response only.")
    previous_response_id: str | None = None
    store: bool | None = Field(None, description="Default: true.")
    stream: bool | None = None
    max_output_tokens: int | None = Field(None, json_schema_extra={"minimum": 1})
    temperature: float | None = None
    top_p: float | None = None
    tools: Annotated[Any, WithJsonSchema(_TOOLS_SCHEMA)] = None
    tool_choice: Annotated[Any, WithJsonSchema(RESPONSES_TOOL_CHOICE_SCHEMA)] = None
    parallel_tool_calls: bool | None = None
    text: Annotated[Any, WithJsonSchema(TEXT_OPTIONS_SCHEMA)] = Field(
        None, description="What the text has to match."
    )
    reasoning: Annotated[Any, WithJsonSchema(_REASONING_SCHEMA)] = Field(
        None, description="Refused where the model's chat template has no such choice."
    )
    metadata: dict[str, str] | None = Field(None, description="Kept with the response.")

    def check(self) -> None:
        """Raises InvalidRequestError for fields that can't be honoured."""
        refuse_unsupported(
            self.model_extra or {}, set(type(self).model_fields), neutral_values=NEUTRAL_VALUES
        )

    def sampling_params(self) -> SamplingParams:
        """Raises InvalidRequestError for values out of range."""
        if self.max_output_tokens is not None and self.max_output_tokens < 1:
            raise InvalidRequestError(
                f"'max_output_tokens' must be at least 1, not {self.max_output_tokens}.",
                param="max_output_tokens",
            )
        values = {
            name: value
            for name in ("temperature", "top_p")
            if (value := getattr(self, name)) is not None
        }
        return SamplingParams(
            max_tokens=self.max_output_tokens, structured_output=self._text_output(), **values
        )

    @property
    def effort(self) -> Any:
        """Of its reasoning. Raises InvalidRequestError for what else is asked of that."""
        options = {} if self.reasoning is None else self.reasoning
        if not isinstance(options, dict) or options.keys() - {"effort", "summary"}:
            raise InvalidRequestError("'reasoning' takes only an effort.", param="reasoning")
        if options.get("summary") is not None:
            raise InvalidRequestError(
                "This server does not support 'reasoning.summary': it shows reasoning as it is; "
                "leave it out.",
                param="reasoning.summary",
                code="unsupported_parameter",
            )
        return options.get("effort")

    def _text_output(self) -> StructuredOutput | None:
        options = {} if self.text is None else self.text
        if not isinstance(options, dict) or options.keys() - {"format", "verbosity"}:
            raise InvalidRequestError("'text' takes only a format and a verbosity.", param="text")
        if options.get("verbosity") not in (None, "medium"):
            raise InvalidRequestError(
                "This server does not support 'text.verbosity' with this value; leave it out or "
                "set it to 'medium'.",
                param="text.verbosity",
                code="unsupported_parameter",
            )
        return text_format_output(options.get("format"))

    def shown_text(self) -> TextOptions:
        """As the response repeats it; only once it was found right."""
        given = (self.text or {}).get("format") or {"type": "text"}
        if given["type"] == "json_schema":
            fields = {name: given.get(name) for name in ("description", "schema", "strict")}
            return TextOptions(JsonSchemaFormat(name=str(given.get("name", "")), **fields))
        return TextOptions(JsonObjectFormat() if given["type"] == "json_object" else TextFormat())


ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    text: str
    annotations: list[str] = []
    logprobs: list[str] = []


class ReasoningText(msgspec.Struct, tag_field="type", tag="reasoning_text"):
    text: str


class MessageItem(msgspec.Struct, kw_only=True, tag_field="type", tag="message"):
    id: str
    status: ItemStatus = "in_progress"
    role: str = "assistant"
    content: list[OutputText] = []


class ReasoningItem(msgspec.Struct, kw_only=True, tag_field="type", tag="reasoning"):
    id: str
    status: ItemStatus = "in_progress"
    summary: list[str] = []
    content: list[ReasoningText] = []


class FunctionCallItem(msgspec.Struct, kw_only=True, tag_field="type", tag="function_call"):
    id: str
    status: ItemStatus = "in_progress"
    call_id: str
    name: str
    arguments: str = ""


OutputItem = MessageItem | ReasoningItem | FunctionCallItem


class InputTokensDetails(msgspec.Struct):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, kw_only=True):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseFailure(msgspec.Struct, kw_only=True):
    code: str = "server_error"
    message: str


class IncompleteDetails(msgspec.Struct):
    reason: str


class ReasoningOptions(msgspec.Struct):
    effort: str | None = None
    summary: None = None


class ModelResponse(msgspec.Struct, kw_only=True):
    """The response object."""

    id: str
    object: str = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"] = "in_progress"
    background: bool = False
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem] = []
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: ReasoningOptions = msgspec.field(default_factory=ReasoningOptions)
    store: bool
    temperature: float
    text: TextOptions
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float
    truncation: str = "disabled"
    usage: ResponseUsage | None = None


class DeletedResponse(msgspec.Struct, kw_only=True):
    id: str
    object: str = "response"
    deleted: bool = True
