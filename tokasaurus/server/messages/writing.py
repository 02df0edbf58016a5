"""What /v1/messages answers: one message of content blocks, whole or as a stream of events."""

import msgspec

from tokasaurus.errors import TokasaurusError
from tokasaurus.server.chat_output import ChatOutputParser
from tokasaurus.server.chat_turns import RunningTurn
from tokasaurus.server.errors import describe, describe_to_anthropic, status_of
from tokasaurus.server.generation import Generation
from tokasaurus.server.ids import new_id
from tokasaurus.server.output_events import (
    ArgumentsPiece,
    CallStart,
    OutputEvent,
    ReasoningPiece,
    TextPiece,
    merged,
)
from tokasaurus.server.schemas.messages import (
    ContentBlock,
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    InputJsonDelta,
    Message,
    MessageDelta,
    MessageError,
    MessageStart,
    MessageStop,
    MessageUsage,
    StopDelta,
    StopReason,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
)
from tokasaurus.server.streaming import Chunks


def message_error(error: TokasaurusError) -> MessageError:
    """A failure as Anthropic's clients expect it."""
    return describe_to_anthropic(status_of(error), describe(error))


class MessageWriter:
    """Of one request; use either `whole`, or `first_chunks` and then `chunks`."""

    def __init__(self, model: str, running: RunningTurn) -> None:
        self._id = new_id("msg_")
        self._model = model
        self._running = running
        self._parser = running.new_parser() or ChatOutputParser(None, None)
        self._open_block: type[OutputEvent] | None = None
        self._num_blocks = 0

    def whole(self, generation: Generation) -> Message:
        events = [*self._parser.push(generation.take().text), *self._parser.flush()]
        content = self._content(events)
        reason = self._stop_reason(generation)
        if reason == "tool_use" and not any(isinstance(b, ToolUseBlock) for b in content):
            reason = "end_turn"
        message = self._message(content, _usage(generation))
        message.stop_reason, message.stop_sequence = reason, _stop_sequence(generation)
        return message

    def first_chunks(self) -> Chunks:
        num_prompt_tokens = self._running.num_prompt_tokens
        usage = MessageUsage(
            input_tokens=num_prompt_tokens, cache_read_input_tokens=0, output_tokens=0
        )
        return [MessageStart(self._message([], usage))]

    def chunks(self, generation: Generation) -> Chunks:
        """Everything since the last call."""
        events = self._parser.push(generation.take().text)
        has_finished = generation.finish_reason is not None
        if has_finished:
            events += self._parser.flush()
        chunks: Chunks = []
        for event in events:
            if isinstance(event, CallStart) or not isinstance(event, self._continues()):
                chunks += self._close_block()
                chunks.append(ContentBlockStart(self._num_blocks, self._new_block(event)))
                self._open_block = type(event)
            if not isinstance(event, CallStart):
                chunks.append(ContentBlockDelta(self._num_blocks, _delta(event)))
        if has_finished:
            chunks += self._close_block()
            stop = StopDelta(self._stop_reason(generation), _stop_sequence(generation))
            chunks += [MessageDelta(stop, _usage(generation)), MessageStop()]
        return chunks

    def _continues(self) -> tuple[type[msgspec.Struct], ...]:
        """Events that belong to the open block."""
        if self._open_block is None:
            return ()
        return (ArgumentsPiece,) if self._open_block is CallStart else (self._open_block,)

    def _close_block(self) -> Chunks:
        if self._open_block is None:
            return []
        self._open_block = None
        self._num_blocks += 1
        return [ContentBlockStop(self._num_blocks - 1)]

    def _new_block(self, event: OutputEvent) -> ContentBlock:
        match event:
            case CallStart():
                return ToolUseBlock(self._running.new_call_id(), event.name, {})
            case ReasoningPiece():
                return ThinkingBlock("")
            case _:
                return TextBlock("")

    def _content(self, events: list[OutputEvent]) -> list[ContentBlock]:
        """A call whose arguments are no JSON object, as when it was cut off, is left out."""
        blocks: list[ContentBlock] = []
        name = ""
        for event in merged(events):
            match event:
                case TextPiece():
                    blocks.append(TextBlock(event.text))
                case ReasoningPiece():
                    blocks.append(ThinkingBlock(event.text))
                case CallStart():
                    name = event.name
                case ArgumentsPiece():
                    if (value := _object(event.text)) is not None:
                        call_id = self._running.new_call_id()
                        blocks.append(ToolUseBlock(call_id, name, value))
        return blocks

    def _message(self, content: list[ContentBlock], usage: MessageUsage) -> Message:
        return Message(
            id=self._id,
            model=self._model,
            content=content,
            stop_reason=None,
            stop_sequence=None,
            usage=usage,
        )

    def _stop_reason(self, generation: Generation) -> StopReason:
        if generation.finish_reason == "length":
            return "max_tokens"
        if self._parser.num_calls:
            return "tool_use"
        return "end_turn" if _stop_sequence(generation) is None else "stop_sequence"


def _delta(event: OutputEvent) -> TextDelta | ThinkingDelta | InputJsonDelta:
    match event:
        case TextPiece():
            return TextDelta(event.text)
        case ReasoningPiece():
            return ThinkingDelta(event.text)
        case ArgumentsPiece():
            return InputJsonDelta(event.text)
    raise AssertionError(f"{event} is no piece of a block")


def _stop_sequence(generation: Generation) -> str | None:
    reason = generation.stop_reason
    return reason if isinstance(reason, str) else None


def _usage(generation: Generation) -> MessageUsage:
    num_cached = generation.num_cached_tokens
    return MessageUsage(
        input_tokens=generation.num_prompt_tokens - num_cached,
        cache_read_input_tokens=num_cached,
        output_tokens=len(generation.output_ids),
    )


def _object(text: str) -> dict[str, object] | None:
    try:
        value = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
