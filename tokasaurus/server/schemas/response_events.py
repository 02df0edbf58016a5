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


class WholeResponse(ResponseEvent, kw_only=True):
    response: ModelResponse


class ResponseCreated(WholeResponse, kw_only=True, tag="response.created"):
    pass


class ResponseInProgress(WholeResponse, kw_only=True, tag="response.in_progress"):
    pass


class ResponseCompleted(WholeResponse, kw_only=True, tag="response.completed"):
    pass


class ResponseIncomplete(WholeResponse, kw_only=True, tag="response.incomplete"):
    pass


class ResponseFailed(WholeResponse, kw_only=True, tag="response.failed"):
    pass


class ItemEvent(ResponseEvent, kw_only=True):
    output_index: int
    item: OutputItem


class ItemAdded(ItemEvent, kw_only=True, tag="response.output_item.added"):
    pass


class ItemDone(ItemEvent, kw_only=True, tag="response.output_item.done"):
    pass


class PieceEvent(ResponseEvent, kw_only=True):
    """About a piece of an item."""

    item_id: str
    output_index: int


class PartEvent(PieceEvent, kw_only=True):
    content_index: int = 0
    part: ContentPart


class PartAdded(PartEvent, kw_only=True, tag="response.content_part.added"):
    pass


class PartDone(PartEvent, kw_only=True, tag="response.content_part.done"):
    pass


class TextDelta(PieceEvent, kw_only=True, tag="response.output_text.delta"):
    content_index: int = 0
    delta: str
    logprobs: list[str] = []


class TextDone(PieceEvent, kw_only=True, tag="response.output_text.done"):
    content_index: int = 0
    text: str
    logprobs: list[str] = []


class ReasoningDelta(PieceEvent, kw_only=True, tag="response.reasoning_text.delta"):
    content_index: int = 0
    delta: str


class ReasoningDone(PieceEvent, kw_only=True, tag="response.reasoning_text.done"):
    content_index: int = 0
    text: str


class ArgumentsDelta(PieceEvent, kw_only=True, tag="response.function_call_arguments.delta"):
    delta: str


class ArgumentsDone(PieceEvent, kw_only=True, tag="response.function_call_arguments.done"):
    name: str
    arguments: str
