"""What a choice of a chat shows of its generation; streams and whole responses agree."""

from collections.abc import Callable, Sequence

from msgspec import UNSET

from tokasaurus.server.chat_output import ChatOutputParser
from tokasaurus.server.completion_choices import api_finish_reason
from tokasaurus.server.generation import Delta, Generation, TokenLogprob
from tokasaurus.server.output_events import (
    ArgumentsPiece,
    CallStart,
    OutputEvent,
    ReasoningPiece,
    TextPiece,
)
from tokasaurus.server.schemas.chat_completions import (
    CalledFunction,
    CalledFunctionDelta,
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    ChatFinishReason,
    ChatLogprobs,
    ChatMessage,
    ToolCall,
    ToolCallDelta,
)

WriteLogprobs = Callable[[Sequence[TokenLogprob]], ChatLogprobs]
"""How a response shows those of its tokens."""


def chat_message(events: list[OutputEvent], new_call_id: Callable[[], str]) -> ChatMessage:
    """All that a model said, as one message; its content is null if it only called tools."""
    texts: list[str] = []
    reasoning: list[str] = []
    calls: list[ToolCall] = []
    for event in events:
        match event:
            case TextPiece():
                texts.append(event.text)
            case ReasoningPiece():
                reasoning.append(event.text)
            case CallStart():
                calls.append(ToolCall(id=new_call_id(), function=CalledFunction(event.name, "")))
            case ArgumentsPiece():
                calls[-1].function.arguments += event.text
    text = "".join(texts)
    return ChatMessage(
        text if text or not calls else None,
        reasoning_content="".join(reasoning) if reasoning else UNSET,
        tool_calls=calls or UNSET,
    )


def chat_choice(
    generation: Generation,
    write_logprobs: WriteLogprobs,
    parser: ChatOutputParser | None,
    new_call_id: Callable[[], str],
) -> ChatChoice:
    """The choice of a whole response. `parser` is a fresh one; None: all is text."""
    delta = generation.take()
    if parser is None:
        message = ChatMessage(delta.text)
    else:
        message = chat_message([*parser.push(delta.text), *parser.flush()], new_call_id)
    reason = _finish_reason(generation, parser)
    assert reason is not None, "the generation has not finished"
    return ChatChoice(
        index=generation.index,
        message=message,
        logprobs=_logprobs_of(delta, generation, write_logprobs),
        finish_reason=reason,
    )


class ChatChoiceWriter:
    """One choice of a streamed chat completion: its role, then what it says, then why it ended."""

    def __init__(
        self,
        write_logprobs: WriteLogprobs,
        parser: ChatOutputParser | None,
        new_call_id: Callable[[], str],
    ) -> None:
        self._write_logprobs = write_logprobs
        self._parser = parser
        self._new_call_id = new_call_id
        self._num_calls = 0
        self._has_begun = False

    def take_text(self, generation: Generation) -> str | None:
        """All news if they are no more than further text; None, and nothing taken, otherwise."""
        if self._parser is not None or not self._has_begun:
            return None
        return generation.take_text()

    def write(self, generation: Generation) -> list[ChatChunkChoice]:
        """Everything since the last call, one entry per chunk."""
        delta, index = generation.take(), generation.index
        deltas: list[ChatDelta] = []
        if self._parser is not None:
            deltas = self._parsed(self._parser, delta.text, generation)
        elif delta.text:
            deltas = [ChatDelta(content=delta.text)]
        if delta.logprobs and not deltas:
            deltas = [ChatDelta(content="")]
        choices = [ChatChunkChoice(index=index, delta=one) for one in deltas]
        if delta.logprobs:
            choices[0].logprobs = _logprobs_of(delta, generation, self._write_logprobs)
        if not self._has_begun:
            self._has_begun = True
            first = ChatChunkChoice(index=index, delta=ChatDelta("assistant", ""))
            choices.insert(0, first)
        reason = _finish_reason(generation, self._parser)
        if reason is not None:
            choices.append(ChatChunkChoice(index=index, delta=ChatDelta(), finish_reason=reason))
        return choices

    def _parsed(
        self, parser: ChatOutputParser, text: str, generation: Generation
    ) -> list[ChatDelta]:
        events = parser.push(text)
        if generation.finish_reason is not None:
            events += parser.flush()
        return [self._delta(event) for event in events]

    def _delta(self, event: OutputEvent) -> ChatDelta:
        match event:
            case TextPiece():
                return ChatDelta(content=event.text)
            case ReasoningPiece():
                return ChatDelta(reasoning_content=event.text)
            case CallStart():
                self._num_calls += 1
                call = ToolCallDelta(
                    index=self._num_calls - 1,
                    id=self._new_call_id(),
                    type="function",
                    function=CalledFunctionDelta("", event.name),
                )
            case ArgumentsPiece():
                call = ToolCallDelta(
                    index=self._num_calls - 1, function=CalledFunctionDelta(event.text)
                )
        return ChatDelta(tool_calls=[call])


def _finish_reason(
    generation: Generation, parser: ChatOutputParser | None
) -> ChatFinishReason | None:
    reason = api_finish_reason(generation)
    if reason == "stop" and parser is not None and parser.num_calls and not parser.is_call_named:
        return "tool_calls"
    return reason


def _logprobs_of(
    delta: Delta, generation: Generation, write_logprobs: WriteLogprobs
) -> ChatLogprobs | None:
    if generation.params.logprobs is None:
        return None
    return write_logprobs(delta.logprobs)
