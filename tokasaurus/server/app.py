"""The FastAPI application: routes, error shapes and the API's description."""

from fastapi import FastAPI

from tokasaurus import __version__
from tokasaurus.server.errors import install_error_handlers
from tokasaurus.server.openapi import install_openapi
from tokasaurus.server.routes import (
    chat_completions,
    completions,
    health,
    home,
    messages,
    metrics,
    models,
    responses,
    score,
    tokenize,
)
from tokasaurus.server.schemas.chat_completions import ChatCompletion, ChatCompletionRequest
from tokasaurus.server.schemas.completions import Completion, CompletionRequest
from tokasaurus.server.schemas.messages import (
    CountTokensRequest,
    Message,
    MessagesRequest,
    TokenCount,
)
from tokasaurus.server.schemas.models import Model, ModelList
from tokasaurus.server.schemas.responses import DeletedResponse, ModelResponse, ResponsesRequest
from tokasaurus.server.schemas.score import ScoreList, ScoreRequest
from tokasaurus.server.schemas.tokenize import (
    Detokenized,
    DetokenizeRequest,
    Tokenized,
    TokenizeRequest,
)
from tokasaurus.server.state import ServerState


def create_app(state: ServerState) -> FastAPI:
    """An app that serves `state`; starting and closing what is in it stays with the caller."""
    app = FastAPI(title="Tokasaurus", version=__version__, redoc_url=None)
    app.state.server = state
    install_error_handlers(app)
    for module in (
        completions,
        chat_completions,
        responses,
        messages,
        score,
        tokenize,
        models,
        health,
        home,
        metrics,
    ):
        app.include_router(module.router)
    state.access.install(app, state.engine.metrics.measurements)
    install_openapi(
        app,
        requests=[
            CompletionRequest,
            ChatCompletionRequest,
            ResponsesRequest,
            MessagesRequest,
            CountTokensRequest,
            ScoreRequest,
            TokenizeRequest,
            DetokenizeRequest,
        ],
        responses=[
            Completion,
            ChatCompletion,
            ModelResponse,
            DeletedResponse,
            Message,
            TokenCount,
            ScoreList,
            Tokenized,
            Detokenized,
            Model,
            ModelList,
        ],
    )
    return app
