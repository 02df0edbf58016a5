"""Which requests are traced, and what their spans say of them."""

from collections.abc import Mapping
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokasaurus.observability.tracing import AttributeValue, RequestTrace, RequestTracer
from tokasaurus.server.access import scope_keys
from tokasaurus.server.disconnect import CLIENT_CLOSED_REQUEST
from tokasaurus.server.sampling_params import SamplingParams

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/score": "score",
}
_HEADERS = frozenset({b"traceparent", b"tracestate"})

_current_trace: ContextVar[RequestTrace | None] = ContextVar("current_trace", default=None)
"""Of the request that the running code answers."""


class RequestTracing:
    """ASGI middleware; without a tracer it should not be installed at all."""

    def __init__(self, app: ASGIApp, tracer: RequestTracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = _OPERATIONS.get(scope["path"]) if scope["type"] == "http" else None
        if operation is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        status = CLIENT_CLOSED_REQUEST

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        attributes = {
            "http.request.method": "POST",
            "http.route": scope["path"],
            "tokasaurus.request_id": scope.get(scope_keys.REQUEST_ID, ""),
        }
        trace = self._tracer.begin(operation, _headers(scope), attributes)
        token = _current_trace.set(trace)
        try:
            await self._app(scope, receive, send_and_see)
        except Exception:
            status = 500
            raise
        finally:
            _current_trace.reset(token)
            trace.end_response(status)


def begin_sample(params: SamplingParams) -> RequestTrace | None:
    """The trace that a sample submitted now belongs to; it is to be told when the sample ends."""
    trace = _current_trace.get()
    if trace is not None:
        trace.begin_sample(_attributes(params))
    return trace


def _headers(scope: Scope) -> Mapping[str, str]:
    return {
        name.decode(): value.decode("latin-1")
        for name, value in scope["headers"]
        if name in _HEADERS
    }


def _attributes(params: SamplingParams) -> dict[str, AttributeValue]:
    values: dict[str, AttributeValue | None] = {
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.choice.count": params.n,
        "gen_ai.request.seed": params.seed,
        "gen_ai.request.temperature": float(params.temperature),
        "gen_ai.request.top_p": float(params.top_p),
        "gen_ai.request.top_k": params.top_k,
        "gen_ai.request.frequency_penalty": float(params.frequency_penalty),
        "gen_ai.request.presence_penalty": float(params.presence_penalty),
        "gen_ai.request.stop_sequences": list(params.stop) or None,
    }
    return {name: value for name, value in values.items() if value is not None}
