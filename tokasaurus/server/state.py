"""What all routes share: the engine, the tokenizer, and how the model is called."""

import time
from dataclasses import dataclass, field

from fastapi import Request

from tokasaurus.errors import ModelNotFoundError
from tokasaurus.ipc.messages.to_manager import Pooling
from tokasaurus.observability.tracing import RequestTracer
from tokasaurus.server.access.policy import AccessPolicy
from tokasaurus.server.batches.item_runner import ItemRunner
from tokasaurus.server.batches.service import BatchService
from tokasaurus.server.batches.settings import BatchSettings
from tokasaurus.server.engine_client import EngineClient
from tokasaurus.server.errors import ServerNotReadyError
from tokasaurus.server.output_format import OutputFormat
from tokasaurus.server.peers import Peers
from tokasaurus.server.pooling_choice import DEFAULT_POOLING
from tokasaurus.server.responses.sharing import SharedResponses
from tokasaurus.server.responses.store import ResponseStore
from tokasaurus.server.totals import Totals
from tokasaurus.tokenization.chat_template import ChatTemplate
from tokasaurus.tokenization.encoding_pool import EncodingPool
from tokasaurus.tokenization.tokenizer import Tokenizer

DEFAULT_MAX_BODY_BYTES = 32 * 2**20


@dataclass(slots=True, kw_only=True)
class ServerState:
    engine: EngineClient
    tokenizer: Tokenizer
    encoding_pool: EncodingPool
    chat_template: ChatTemplate | None
    model_name: str
    output_format: OutputFormat = field(default_factory=OutputFormat)
    """How the model marks reasoning and tool calls."""
    default_pooling: Pooling = DEFAULT_POOLING
    """Of embeddings that don't say."""
    access: AccessPolicy = field(default_factory=AccessPolicy)
    tracer: RequestTracer | None = None
    """Of requests; None: they aren't traced."""
    responses: ResponseStore = field(default_factory=ResponseStore)
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    stream_stall_seconds: float = 60.0
    batch_settings: BatchSettings = field(default_factory=BatchSettings)
    item_runner: ItemRunner = field(init=False)
    """Of the app that serves this state, as is `batch_service`."""
    batch_service: BatchService = field(init=False)
    peers: Peers | None = None
    """The other servers of the engine; None if there are none."""
    shared_responses: SharedResponses = field(init=False)
    """`responses` and those of the other servers."""
    totals: Totals = field(init=False)
    started_at: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.shared_responses = SharedResponses(self.responses, self.peers)
        self.totals = Totals(self.engine, self.peers)

    def check_model(self, name: str | None) -> None:
        """Raises ModelNotFoundError unless this server serves it."""
        if name is not None and name != self.model_name:
            raise ModelNotFoundError(
                f"The model {name[:200]!r} does not exist here; this server serves "
                f"{self.model_name!r}.",
                param="model",
            )

    def check_ready(self) -> None:
        """Raises ServerNotReadyError if requests can't be taken."""
        if not self.engine.is_ready:
            raise ServerNotReadyError(
                str(self.engine.failure or "The engine is starting; try again in a moment.")
            )


def state_of(request: Request) -> ServerState:
    """The state of the app that the request came to."""
    state = request.app.state.server
    assert isinstance(state, ServerState)
    return state
