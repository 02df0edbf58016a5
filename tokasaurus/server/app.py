"""The FastAPI application: routes, error shapes and the API's description."""

from starlette.routing import BaseRoute

from tokasaurus import __version__
from tokasaurus.server.batches.forwarding import ForwardToLeader, answer_forwarded
from tokasaurus.server.batches.item_runner import ItemRunner
from tokasaurus.server.batches.service import BatchService
from tokasaurus.server.direct_routes import DirectRoutes
from tokasaurus.server.errors import install_error_handlers
from tokasaurus.server.layered_app import LayeredApp
from tokasaurus.server.openapi import install_openapi
from tokasaurus.server.request_tracing import RequestTracing
from tokasaurus.server.routes import (
    batches,
    chat_completions,
    completions,
    embeddings,
    files,
    health,
    home,
    messages,
    metrics,
    models,
    responses,
    score,
    synchronous_batches,
    tokenize,
)
from tokasaurus.server.routes.synchronous_batches import SynchronousBatch
from tokasaurus.server.schemas.batches import Batch, BatchList, BatchRequest
from tokasaurus.server.schemas.chat_completions import ChatCompletion, ChatCompletionRequest
from tokasaurus.server.schemas.completions import Completion, CompletionRequest
from tokasaurus.server.schemas.embeddings import EmbeddingList, EmbeddingRequest
from tokasaurus.server.schemas.files import DeletedFile, FileList, FileObject
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
    TokenizerInfo,
)
from tokasaurus.server.state import ServerState


def create_app(state: ServerState) -> LayeredApp:
    """An app that serves `state`; starting and closing what is in it stays with the caller."""
    app = LayeredApp(title="Tokasaurus", version=__version__, redoc_url=None)
    app.state.server = state
    install_error_handlers(app)
    endpoints: list[BaseRoute] = []
    for module in (
        completions,
        chat_completions,
        responses,
        messages,
        score,
        embeddings,
        tokenize,
        models,
        health,
        home,
        metrics,
        files,
        batches,
        synchronous_batches,
    ):
        app.include_router(module.router)
        endpoints += module.router.routes
    settings = state.batch_settings
    paths = [getattr(endpoint, "path", "") for endpoint in endpoints]
    state.item_runner = ItemRunner(app, paths, state.engine, settings.max_in_flight)
    peers = state.peers
    state.batch_service = BatchService(settings, state.item_runner, state.max_body_bytes, peers)
    app.wrap(DirectRoutes, routes=endpoints)
    if peers is not None and peers.leads:
        answer_forwarded(app, peers)
    elif peers is not None:
        app.wrap(
            ForwardToLeader,
            routes=batches.router.routes,
            peers=peers,
            max_body_bytes=state.max_body_bytes,
        )
    if state.tracer is not None:
        app.wrap(RequestTracing, tracer=state.tracer)
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
            EmbeddingRequest,
            TokenizeRequest,
            DetokenizeRequest,
            BatchRequest,
            SynchronousBatch,
        ],
        responses=[
            Completion,
            ChatCompletion,
            ModelResponse,
            DeletedResponse,
            Message,
            TokenCount,
            ScoreList,
            EmbeddingList,
            Tokenized,
            Detokenized,
            TokenizerInfo,
            Model,
            ModelList,
            FileObject,
            FileList,
            DeletedFile,
            Batch,
            BatchList,
        ],
    )
    return app
