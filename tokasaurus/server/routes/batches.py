"""/v1/batches: create, list, describe and cancel."""

import msgspec
from fastapi import APIRouter, Request, Response

from tokasaurus.server.body import parse_body
from tokasaurus.server.openapi import answers, takes
from tokasaurus.server.routes.listing import parse_page, query_parameters, slice_of
from tokasaurus.server.schemas.batches import Batch, BatchList, BatchRequest
from tokasaurus.server.state import state_of

router = APIRouter(tags=["batches"])

_DEFAULT_LIMIT = 20
_MAX_LIMIT = 100


@router.post(
    "/v1/batches",
    summary="Run the requests of a file",
    openapi_extra=takes(BatchRequest),
    responses=answers(Batch),
)
async def create_batch(request: Request) -> Response:
    state = state_of(request)
    body = await parse_body(request, BatchRequest, state.max_body_bytes)
    return _json(await state.batch_service.create(body))


@router.get(
    "/v1/batches",
    summary="List batches",
    openapi_extra=query_parameters(_MAX_LIMIT),
    responses=answers(BatchList),
)
async def list_batches(request: Request) -> Response:
    page = parse_page(request, default_limit=_DEFAULT_LIMIT, max_limit=_MAX_LIMIT)
    found = await state_of(request).batch_service.batches(page)
    first_id, last_id, has_more = slice_of(found, page)
    return _json(BatchList(data=found, first_id=first_id, last_id=last_id, has_more=has_more))


@router.get("/v1/batches/{batch_id}", summary="Describe a batch", responses=answers(Batch))
async def retrieve_batch(request: Request, batch_id: str) -> Response:
    return _json(await state_of(request).batch_service.batch(batch_id))


@router.post("/v1/batches/{batch_id}/cancel", summary="Cancel a batch", responses=answers(Batch))
async def cancel_batch(request: Request, batch_id: str) -> Response:
    return _json(await state_of(request).batch_service.cancel(batch_id))


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
