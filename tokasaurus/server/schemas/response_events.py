"""The events of a streamed response."""

import msgspec

from tokasaurus.server.schemas.responses import (
    ModelResponse,
    OutputItem,
    OutputText,
    ReasoningText,
)

ContentPart = OutputText | ReasoningText


class ResponseEvent(msgspec.Struct, kw_only=True, tag_field="type"):
    """Events of one stream are numbered from 0."""

    sequence_number: int = 0


class ResponseCreated(ResponseEvent, kw_only=True, tag="response.created"):
    response: ModelResponse


class ResponseInProgress(ResponseEvent, kw_only=True, tag="response.in_progress"):
    response: ModelResponse


class ResponseCompleted(ResponseEvent, kw_only=True, tag="response.completed"):
    response: ModelResponse


class ResponseIncomplete(ResponseEvent, kw_only=True, tag="response.incomplete"):
    response: ModelResponse


class ResponseFailed(ResponseEvent, kw_only=True, tag="response.failed"):
    response: ModelResponse


class ItemAdded(ResponseEvent, kw_only=True, tag="response.output_item.added"):
    output_index: int
    item: OutputItem


class ItemDone(ResponseEvent, kw_only=True, tag="response.output_item.done"):
    output_index: int
    item: OutputItem


class PartAdded(ResponseEvent, kw_only=True, tag="response.content_part.added"):
    item_id: str
    output_index: int
    content_index: int = 0
    part: ContentPart


class PartDone(ResponseEvent, kw_only=True, tag="response.content_part.done"):
    item_id: str
    output_index: int
    content_index: int = 0
    part: ContentPart


class TextDelta(ResponseEvent, kw_only=True, tag="response.output_text.delta"):
    item_id: str
    output_index: int
    content_index: int = 0
    delta: str
    logprobs: list[str] = []


class TextDone(ResponseEvent, kw_only=True, tag="response.output_text.done"):
    item_id: str
    output_index: int
    content_index: int = 0
    text: str
    logprobs: list[str] = []


class ReasoningDelta(ResponseEvent, kw_only=True, tag="response.reasoning_text.delta"):
    item_id: str
    output_index: int
    content_index: int = 0
    delta: str


class ReasoningDone(ResponseEvent, kw_only=True, tag="response.reasoning_text.done"):
    item_id: str
    output_index: int
    content_index: int = 0
    text: str


class ArgumentsDelta(ResponseEvent, kw_only=True, tag="response.function_call_arguments.delta"):
    item_id: str
    output_index: int
    delta: str


class ArgumentsDone(ResponseEvent, kw_only=True, tag="response.function_call_arguments.done"):
    item_id: str
    output_index: int
    name: str
    arguments: str
