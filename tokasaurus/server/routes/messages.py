"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic's clients know them."""

from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.body import parse_body
from tokasaurus.server.chat_turns import ChatTurn, render_turn, start_turn
from tokasaurus.server.messages.conversation import chat_messages, message_tool_use
from tokasaurus.server.messages.writing import MessageWriter, message_error
from tokasaurus.server.openapi import answers, takes
from tokasaurus.server.parameter_names import parameters_called
from tokasaurus.server.reasoning.effort import effort_variables, thinking_off
from tokasaurus.server.sampling_params import SamplingParams
from tokasaurus.server.schemas.messages import (
    CountTokensRequest,
    Message,
    MessageError,
    MessagesRequest,
    TokenCount,
)
from tokasaurus.server.state import ServerState, state_of
from tokasaurus.server.streaming import EventStream, Framing, named_event
from tokasaurus.server.whole_response import finish_all

router = APIRouter(tags=["messages"])

_FRAMING = Framing(named_event, lambda error: named_event(message_error(error)), b"")


@router.post(
    "/v1/messages",
    summary="Answer a chat (Anthropic's form)",
    openapi_extra=takes(MessagesRequest),
    responses=answers(Message, streams=True, failure=MessageError),
)
async def create_message(request: Request) -> Response:
    state = state_of(request)
    body = await parse_body(request, MessagesRequest, state.max_body_bytes)
    state.check_ready()
    state.check_model(body.model)
    with parameters_called({"stop": "stop_sequences"}):
        turn = _turn(state, body, body.sampling_params())
    running = await start_turn(state, turn, stream=bool(body.stream))
    writer = MessageWriter(state.model_name, running)
    if body.stream:
        return EventStream(
            running.group,
            writer.chunks,
            list,
            first_chunks=writer.first_chunks(),
            framing=_FRAMING,
        )
    generations = await finish_all(request, running.group)
    return _json(writer.whole(generations[0]))


@router.post(
    "/v1/messages/count_tokens",
    summary="Tokens of a chat's prompt (Anthropic's form)",
    openapi_extra=takes(CountTokensRequest),
    responses=answers(TokenCount, failure=MessageError),
)
async def count_tokens(request: Request) -> Response:
    state = state_of(request)
    body = await parse_body(request, CountTokensRequest, state.max_body_bytes)
    state.check_ready()
    state.check_model(body.model)
    text = render_turn(
        state, _turn(state, body, SamplingParams(structured_output=body.text_output()))
    )
    [ids] = await state.encoding_pool.encode([text], add_special_tokens=False)
    return _json(TokenCount(len(ids)))


def _turn(state: ServerState, body: CountTokensRequest, params: SamplingParams) -> ChatTurn:
    return ChatTurn(
        messages=chat_messages(body.messages, body.system),
        params=params,
        tool_use=message_tool_use(body.tools, body.tool_choice),
        template_variables=_thinking_variables(state, body.thinking)
        | effort_variables(
            body.effort, state.chat_template, state.output_format, param="output_config.effort"
        ),
    )


def _thinking_variables(state: ServerState, thinking: Any) -> dict[str, Any]:
    if thinking in (None, {"type": "adaptive"}):
        return {}
    if thinking == {"type": "disabled"}:
        return thinking_off(state.chat_template)
    raise InvalidRequestError(
        "'thinking' must be of type 'disabled' or 'adaptive': this server can't hold a model to a "
        "budget of thoughts.",
        param="thinking",
        code="unsupported_parameter",
    )


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
