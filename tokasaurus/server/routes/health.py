"""GET /health, /ready and /ping: is the server alive, and does it take requests."""

from fastapi import APIRouter, Request, Response

from tokasaurus.server.state import state_of

router = APIRouter(tags=["health"])


@router.get("/health", summary="200 as long as the server and its engine live")
async def health(request: Request) -> Response:
    state = state_of(request)
    if state.engine.failure is not None:
        state.check_ready()
    return _status("ok")


@router.get("/ready", summary="200 if requests are taken, else 503")
async def ready(request: Request) -> Response:
    state_of(request).check_ready()
    return _status("ready")


@router.get("/ping", summary="200, whatever the engine does")
async def ping() -> Response:
    return _status("pong")


def _status(word: str) -> Response:
    return Response(f'{{"status":"{word}"}}', media_type="application/json")
