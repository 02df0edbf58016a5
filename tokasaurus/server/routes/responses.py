"""/v1/responses: create (also as a stream), retrieve, delete."""

import msgspec
from fastapi import APIRouter, Request, Response

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.body import parse_body
from tokasaurus.server.chat_turns import ChatTurn, start_turn
from tokasaurus.server.openapi import answers, takes
from tokasaurus.server.parameter_names import parameters_called
from tokasaurus.server.reasoning.effort import effort_variables
from tokasaurus.server.responses.conversation import input_messages, response_tools
from tokasaurus.server.responses.writing import ResponseWriter
from tokasaurus.server.schemas.responses import DeletedResponse, ModelResponse, ResponsesRequest
from tokasaurus.server.state import state_of
from tokasaurus.server.streaming import EventStream, Framing, named_event
from tokasaurus.server.tools.tool_choice import tool_use_of
from tokasaurus.server.whole_response import finish_all

router = APIRouter(tags=["responses"])

_NAMES = {"max_tokens": "max_output_tokens", "messages": "input"}


@router.post(
    "/v1/responses",
    summary="Answer the next turn of a conversation",
    openapi_extra=takes(ResponsesRequest),
    responses=answers(ModelResponse, streams=True),
)
async def create_response(request: Request) -> Response:
    state = state_of(request)
    body = await parse_body(request, ResponsesRequest, state.max_body_bytes)
    state.check_ready()
    state.check_model(body.model)
    body.check()
    with parameters_called(_NAMES):
        params = body.sampling_params()
    conversation = input_messages(body.input)
    if body.previous_response_id is not None:
        previous = await state.shared_responses.get(
            body.previous_response_id, param="previous_response_id"
        )
        conversation = [*previous.messages, *conversation]
    messages = conversation
    if body.instructions is not None:
        messages = [{"role": "system", "content": body.instructions}, *conversation]
    turn = ChatTurn(
        messages=messages,
        params=params,
        tool_use=tool_use_of(
            response_tools(body.tools),
            body.tool_choice,
            parallel=body.parallel_tool_calls is not False,
        ),
        template_variables=effort_variables(
            body.effort, state.chat_template, state.output_format, param="reasoning.effort"
        ),
    )
    with parameters_called(_NAMES):
        running = await start_turn(state, turn, stream=bool(body.stream))
    writer = ResponseWriter(state, body, running, conversation)
    if body.stream:
        return EventStream(
            running.group,
            writer.chunks,
            list,
            first_chunks=writer.first_chunks(),
            framing=Framing(named_event, writer.error_event, b""),
        )
    generations = await finish_all(request, running.group)
    return Response(writer.whole(generations[0]), media_type="application/json")


@router.get(
    "/v1/responses/{response_id}",
    summary="A response that was stored",
    responses=answers(ModelResponse),
)
async def retrieve_response(request: Request, response_id: str) -> Response:
    if request.query_params:
        name = next(iter(request.query_params))
        raise InvalidRequestError(
            f"This server does not support the query parameter {name[:64]!r}; leave it out.",
            param=name[:64],
            code="unsupported_parameter",
        )
    stored = await state_of(request).shared_responses.get(response_id)
    return Response(stored.response, media_type="application/json")


@router.delete(
    "/v1/responses/{response_id}",
    summary="Forget a stored response",
    responses=answers(DeletedResponse),
)
async def delete_response(request: Request, response_id: str) -> Response:
    await state_of(request).shared_responses.delete(response_id)
    return Response(
        msgspec.json.encode(DeletedResponse(id=response_id)), media_type="application/json"
    )
