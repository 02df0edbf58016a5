"""POST /custom/synchronous-batch-completions: a list of requests in, the list of answers out."""

import asyncio
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import RootModel

from tokasaurus.errors import EngineFailedError, InvalidRequestError
from tokasaurus.server.batches.item_runner import ItemRunner
from tokasaurus.server.body import read_body
from tokasaurus.server.disconnect import ClientGoneError, DisconnectWatch
from tokasaurus.server.openapi import takes
from tokasaurus.server.state import state_of

router = APIRouter(tags=["batches"])

_MAX_ITEMS = 16_384
_Body = dict[str, msgspec.Raw]
_ANSWERS: dict[str, Any] = {
    "application/json": {"schema": {"type": "array", "items": {"type": "object"}}}
}


class SynchronousBatch(RootModel[list[dict[str, Any]]]):
    """Bodies of completions (with a `prompt`) or chat completions (with `messages`)."""


@router.post(
    "/custom/synchronous-batch-completions",
    summary="Answer many requests at once",
    description="Each answer is what the request's own path would have said, in the same order; "
    "a request that fails has its error there.",
    openapi_extra=takes(SynchronousBatch),
    responses={200: {"description": "Success", "content": _ANSWERS}},
)
async def answer_all(request: Request) -> Response:
    state = state_of(request)
    state.check_ready()
    bodies = _parse(await read_body(request, state.max_body_bytes))
    if len(bodies) > _MAX_ITEMS:
        raise InvalidRequestError(
            f"The list has {len(bodies)} requests, but at most {_MAX_ITEMS} can be answered at "
            "once; split it, or upload it as a batch."
        )
    work = asyncio.ensure_future(_answer_all(state.item_runner, bodies))

    def give_up() -> None:
        work.cancel()

    try:
        with DisconnectWatch(request.receive, give_up):
            await asyncio.wait((work,))
    finally:
        work.cancel()  # unless it is done: the server stops
    if work.cancelled():
        raise ClientGoneError("The client went away before its answers were there.")
    if (error := work.exception()) is not None:
        raise EngineFailedError("The engine is gone; try again.") from error
    return Response(msgspec.json.encode(work.result()), media_type="application/json")


def _parse(data: bytes) -> list[_Body]:
    try:
        return msgspec.json.decode(data, type=list[_Body])
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"The body must be a list of objects: {error}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"The body is not JSON: {error}.") from error


async def _answer_all(items: ItemRunner, bodies: list[_Body]) -> list[msgspec.Raw]:
    answers: list[msgspec.Raw] = [msgspec.Raw(b"null")] * len(bodies)

    async def answer(index: int, body: _Body) -> None:
        endpoint = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        answers[index] = msgspec.Raw((await items.run(endpoint, body)).body)

    async with asyncio.TaskGroup() as group:
        for index, body in enumerate(bodies):
            await items.start(group, body, answer(index, body))
    return answers
