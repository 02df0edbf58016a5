"""What /v1/responses answers: the response object, whole or as a stream of events."""

import time
from typing import Any

import msgspec

from tokasaurus.errors import TokasaurusError
from tokasaurus.server.chat_output import ChatOutputParser
from tokasaurus.server.chat_turns import RunningTurn
from tokasaurus.server.generation import Generation
from tokasaurus.server.ids import new_id
from tokasaurus.server.output_events import TextPiece
from tokasaurus.server.responses.conversation import output_messages, shown_tools
from tokasaurus.server.responses.output_items import OutputItems
from tokasaurus.server.schemas.response_events import (
    ResponseCompleted,
    ResponseCreated,
    ResponseEvent,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
)
from tokasaurus.server.schemas.responses import (
    IncompleteDetails,
    InputTokensDetails,
    ModelResponse,
    OutputTokensDetails,
    ReasoningItem,
    ReasoningOptions,
    ResponseFailure,
    ResponsesRequest,
    ResponseUsage,
)
from tokasaurus.server.state import ServerState
from tokasaurus.server.streaming import Chunks, named_event


class ResponseWriter:
    """Of one request; use either `whole`, or `first_chunks` and then `chunks`.

    A finished response is stored if the client did not say otherwise.
    """

    def __init__(
        self,
        state: ServerState,
        body: ResponsesRequest,
        running: RunningTurn,
        conversation: list[dict[str, Any]],
    ) -> None:
        """`conversation`: what came before, with this request's input, without instructions."""
        self._state = state
        self._running = running
        self._conversation = conversation
        self._parser = running.new_parser() or ChatOutputParser(None, None)
        self._output = OutputItems(running.new_call_id)
        self._num_events = 0
        params = running.turn.params
        self._response = ModelResponse(
            id=new_id("resp_"),
            created_at=int(time.time()),
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            metadata=body.metadata or {},
            model=state.model_name,
            parallel_tool_calls=body.parallel_tool_calls is not False,
            previous_response_id=body.previous_response_id,
            reasoning=ReasoningOptions(effort=body.effort),
            store=body.store is not False,
            temperature=params.temperature,
            text=body.shown_text(),
            tool_choice="auto" if body.tool_choice is None else body.tool_choice,
            tools=shown_tools(running.turn.tool_use.offered),
            top_p=params.top_p,
        )

    def whole(self, generation: Generation) -> bytes:
        """The response object as JSON."""
        self._read(generation)
        self._finish(generation)
        return msgspec.json.encode(self._response)

    def first_chunks(self) -> Chunks:
        return self._numbered(
            [ResponseCreated(response=self._response), ResponseInProgress(response=self._response)]
        )

    def chunks(self, generation: Generation) -> Chunks:
        """Everything since the last call."""
        events = self._read(generation)
        if generation.finish_reason is not None:
            self._finish(generation)
            is_whole = self._response.status == "completed"
            last = ResponseCompleted if is_whole else ResponseIncomplete
            events.append(last(response=self._response))
        return self._numbered(events)

    def error_event(self, error: TokasaurusError) -> bytes:
        self._response.status = "failed"
        self._response.error = ResponseFailure(message=str(error))
        self._response.output = self._output.items
        [event] = self._numbered([ResponseFailed(response=self._response)])
        return named_event(event)

    def _read(self, generation: Generation) -> list[ResponseEvent]:
        pieces = self._parser.push(generation.take().text)
        has_finished = generation.finish_reason is not None
        if has_finished:
            pieces += self._parser.flush()
        events = [event for piece in pieces for event in self._output.add(piece)]
        if has_finished and not self._output.items:
            events += self._output.add(TextPiece(""))  # clients look for a message
        if has_finished:
            is_whole = generation.finish_reason == "stop"
            events += self._output.close("completed" if is_whole else "incomplete")
        return events

    def _finish(self, generation: Generation) -> None:
        response, num_prompt = self._response, generation.num_prompt_tokens
        num_output = len(generation.output_ids)
        response.output = self._output.items
        response.usage = ResponseUsage(
            input_tokens=num_prompt,
            input_tokens_details=InputTokensDetails(generation.num_cached_tokens),
            output_tokens=num_output,
            output_tokens_details=OutputTokensDetails(self._num_reasoning_tokens(generation)),
            total_tokens=num_prompt + num_output,
        )
        response.status = "completed"
        if generation.finish_reason == "length":
            response.status = "incomplete"
            response.incomplete_details = IncompleteDetails("max_output_tokens")
        if response.store:
            messages = [*self._conversation, *output_messages(response.output)]
            self._state.responses.add(response.id, msgspec.json.encode(response), messages)

    def _num_reasoning_tokens(self, generation: Generation) -> int:
        """Up to the token that closes the reasoning, or of its text if that is not one token."""
        thoughts = [item for item in self._output.items if isinstance(item, ReasoningItem)]
        marks = self._running.output_format.reasoning
        if not thoughts or marks is None:
            return 0
        closing = self._state.tokenizer.token_id(marks.closing)
        if closing is not None:
            ids = generation.output_ids
            return ids.index(closing) + 1 if closing in ids else len(ids)
        text = "".join(part.text for item in thoughts for part in item.content)
        return len(self._state.tokenizer.encode(text, add_special_tokens=False))

    def _numbered(self, events: list[ResponseEvent]) -> Chunks:
        for event in events:
            event.sequence_number = self._num_events
            self._num_events += 1
        return list(events)
