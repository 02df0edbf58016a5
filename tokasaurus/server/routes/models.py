"""GET /v1/models: what is served here."""

import msgspec
from fastapi import APIRouter, Request, Response

from tokasaurus.server.openapi import answers
from tokasaurus.server.schemas.models import Model, ModelList
from tokasaurus.server.state import ServerState, state_of

router = APIRouter(tags=["models"])


@router.get("/v1/models", summary="List the served models", responses=answers(ModelList))
async def list_models(request: Request) -> Response:
    state = state_of(request)
    state.check_ready()
    return _json(ModelList(data=[_describe(state)]))


@router.get("/v1/models/{name:path}", summary="Describe a model", responses=answers(Model))
async def retrieve_model(request: Request, name: str) -> Response:
    state = state_of(request)
    state.check_ready()
    state.check_model(name)
    return _json(_describe(state))


def _describe(state: ServerState) -> Model:
    return Model(
        id=state.model_name,
        created=state.started_at,
        max_model_len=state.engine.limits.max_model_len,
    )


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
