"""Requests as OpenTelemetry traces, sent to a collector by OTLP over HTTP.

A request is one span, with a span each for the time that a sample was queued, prefilled and
decoded. Names are those of OpenTelemetry's semantic conventions for generative AI. Spans are
written when a sample ends, from times that are known by then, and sent by a thread of the SDK's.
"""

import importlib.util
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from tokasaurus import __version__
from tokasaurus.errors import ConfigError

AttributeValue = str | bool | int | float | Sequence[str]

_MAX_TRACED_SAMPLES = 16
"""Of one request: the phases of more would bury the others."""
_EXPORT_TIMEOUT_SECONDS = 5.0


class SampleTimes(msgspec.Struct, kw_only=True):
    """One sample that has ended; times are those of the monotonic clock."""

    index: int
    submitted_at: float
    queue_seconds: float | None
    """None if it never ran, or nobody knows."""
    first_token_at: float | None
    ended_at: float
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    num_preemptions: int
    preempted: list[tuple[float, float]]
    """From, to: when it had lost its seat to others, in order."""
    finish_reason: str
    error: str | None = None

    def phases(self) -> list[tuple[str, float, float]]:
        """(name, start, end) of those that it went through, one after the other."""
        if self.queue_seconds is None and self.first_token_at is None:
            return [("queued", self.submitted_at, self.ended_at)]
        started_at = min(self.submitted_at + (self.queue_seconds or 0.0), self.ended_at)
        phases = [("queued", self.submitted_at, started_at)]
        if self.first_token_at is None:
            return [*phases, *self._interrupted("prefill", started_at, self.ended_at)]
        first_token_at = max(started_at, self.first_token_at)
        return [
            *phases,
            *self._interrupted("prefill", started_at, first_token_at),
            *self._interrupted("decode", first_token_at, self.ended_at),
        ]

    def _interrupted(self, name: str, start: float, end: float) -> list[tuple[str, float, float]]:
        """A phase in pieces, with the waits of a preempted sequence between them."""
        pieces = []
        for lost_at, resumed_at in self.preempted:
            if start <= lost_at < end:
                resumed_at = min(resumed_at, end)
                pieces += [(name, start, lost_at), ("preempted", lost_at, resumed_at)]
                start = resumed_at
        return [*pieces, (name, start, end)]


class RequestTracer:
    """Begins traces and sends them; `close` sends what is left."""

    def __init__(self, endpoint: str, *, model_name: str, instance: str) -> None:
        """`instance` tells this server from others of the engine.

        Raises ConfigError if `endpoint` is no URL or the packages aren't there.
        """
        _check(endpoint)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        own = {"service.version": __version__, "service.instance.id": instance}
        resource = Resource.create(own)
        if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "tokasaurus"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_TIMEOUT_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tokasaurus", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._model_name = model_name

    def begin(
        self, operation: str, headers: Mapping[str, str], attributes: Mapping[str, AttributeValue]
    ) -> "RequestTrace":
        """A request has come. Its trace is the client's if `headers` bring one (traceparent)."""
        from opentelemetry.trace import SpanKind

        span = self._tracer.start_span(
            f"{operation} {self._model_name}",
            context=self._propagator.extract(headers),
            kind=SpanKind.SERVER,
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "tokasaurus",
                "gen_ai.request.model": self._model_name,
                "gen_ai.response.model": self._model_name,
                **attributes,
            },
        )
        return RequestTrace(self._tracer, span)

    def close(self) -> None:
        """Waits for a collector that doesn't answer, but only for seconds."""
        self._provider.shutdown()


class RequestTrace:
    """One request's spans. It ends when its response and all its samples have."""

    def __init__(self, tracer: Any, span: Any) -> None:
        """Of OpenTelemetry: a Tracer and the request's Span."""
        self._tracer = tracer
        self._span = span
        self._num_open = 1
        self._ended: list[SampleTimes] = []
        self._clock_offset = time.time_ns() - time.monotonic_ns()

    def begin_sample(self, attributes: Mapping[str, AttributeValue]) -> None:
        """One more sample was submitted; `attributes` say what the request asks for."""
        if self._num_open == 1 and self._span.is_recording():
            self._span.set_attributes(attributes)
        self._num_open += 1

    def end_sample(self, sample: SampleTimes) -> None:
        if self._span.is_recording():
            if sample.index < _MAX_TRACED_SAMPLES:
                self._write_phases(sample)
            self._ended.append(sample)
        self._close_one()

    def end_response(self, status: int) -> None:
        """The last byte of the answer was sent, or nobody is there to read it."""
        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            self._fail(str(status), "")
        self._close_one()

    def _write_phases(self, sample: SampleTimes) -> None:
        from opentelemetry.trace import set_span_in_context

        context = set_span_in_context(self._span)
        counts = {
            "queued": {"tokasaurus.num_preemptions": sample.num_preemptions},
            "prefill": {
                "gen_ai.usage.input_tokens": sample.num_prompt_tokens,
                "gen_ai.usage.cache_read.input_tokens": sample.num_cached_tokens,
            },
            "decode": {"gen_ai.usage.output_tokens": sample.num_output_tokens},
            "preempted": {},
        }
        for name, start, end in sample.phases():
            span = self._tracer.start_span(
                name,
                context=context,
                start_time=self._nanoseconds(start),
                attributes={"tokasaurus.sample.index": sample.index, **counts[name]},
            )
            span.end(self._nanoseconds(end))

    def _nanoseconds(self, monotonic_seconds: float) -> int:
        return int(monotonic_seconds * 1e9) + self._clock_offset

    def _close_one(self) -> None:
        self._num_open -= 1
        if self._num_open:
            return
        if self._ended:
            self._sum_up(sorted(self._ended, key=lambda sample: sample.index))
        self._span.end()

    def _sum_up(self, samples: list[SampleTimes]) -> None:
        """Tokens count sample by sample: a prompt as often as it was submitted."""
        self._span.set_attributes(
            {
                "gen_ai.usage.input_tokens": sum(s.num_prompt_tokens for s in samples),
                "gen_ai.usage.cache_read.input_tokens": sum(s.num_cached_tokens for s in samples),
                "gen_ai.usage.output_tokens": sum(s.num_output_tokens for s in samples),
                "gen_ai.response.finish_reasons": [s.finish_reason for s in samples],
            }
        )
        firsts = [
            s.first_token_at - s.submitted_at for s in samples if s.first_token_at is not None
        ]
        if firsts:
            self._span.set_attribute("gen_ai.response.time_to_first_chunk", min(firsts))
        for sample in samples:
            if sample.error is not None:
                self._fail(sample.finish_reason, sample.error)
                return

    def _fail(self, kind: str, description: str) -> None:
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attribute("error.type", kind)
        self._span.set_status(Status(StatusCode.ERROR, description))


def _check(endpoint: str) -> None:
    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ConfigError(
            "otlp_traces_endpoint must be the URL of a collector, such as "
            f"http://127.0.0.1:4318/v1/traces, not {endpoint!r}."
        )
    for package in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
        if not _is_installed(package):
            raise ConfigError(
                "otlp_traces_endpoint needs packages that aren't installed; run "
                "`pip install 'tokasaurus[otel]'`, or leave the option out."
            )


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False
