"""What a collector receives of requests to a whole server."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.otlp_collector import Collector, attributes_of, collecting
from tests.unit.server.tiny_server import ANSWER_IDS, TinyServer, run
from tokasaurus.observability import tracing
from tokasaurus.observability.tracing import RequestTracer, SampleTimes
from tokasaurus.server.sampling_params import SamplingParams

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"


def traced(test: Callable[[TinyServer], Awaitable[None]]) -> Collector:
    """Run a test against a server with a tracer; what was collected once all has ended."""
    with pytest.MonkeyPatch.context() as patch, collecting() as collector:
        patch.setattr(tracing, "_EXPORT_TIMEOUT_SECONDS", 60.0)
        tracer = RequestTracer(collector.url, model_name="tiny", instance="server0")
        run(test, tracer=tracer)
        tracer.close()
    return collector


def phases(collector: Collector, root: Span) -> list[Span]:
    children = sorted(collector.children_of(root), key=lambda span: span.start_time_unix_nano)
    assert children[0].start_time_unix_nano >= root.start_time_unix_nano
    assert children[-1].end_time_unix_nano <= root.end_time_unix_nano
    return children


def test_a_request_and_its_phases() -> None:
    async def check(server: TinyServer) -> None:
        await server.complete(
            prompt=[5, 6, 7], temperature=0.5, top_k=3, seed=4, stop=["zz"], max_tokens=50
        )

    collector = traced(check)
    [root] = collector.roots()
    assert root.name == "text_completion tiny"
    assert len(root.trace_id) == 16
    assert not root.parent_span_id
    seen = attributes_of(root.attributes)
    assert seen.pop("tokasaurus.request_id").startswith("req_")
    assert seen.pop("gen_ai.response.time_to_first_chunk") > 0
    assert seen == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "tokasaurus",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.model": "tiny",
        "gen_ai.request.max_tokens": 50,
        "gen_ai.request.choice.count": 1,
        "gen_ai.request.seed": 4,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.top_k": 3,
        "gen_ai.request.frequency_penalty": 0.0,
        "gen_ai.request.presence_penalty": 0.0,
        "gen_ai.request.stop_sequences": ["zz"],
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.usage.output_tokens": len(ANSWER_IDS),
        "gen_ai.response.finish_reasons": ["stop"],
        "http.request.method": "POST",
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
    }
    assert root.status.code == Status.STATUS_CODE_UNSET
    queued, prefill, decode = phases(collector, root)
    assert [span.name for span in (queued, prefill, decode)] == ["queued", "prefill", "decode"]
    for before, after in ((queued, prefill), (prefill, decode)):
        assert before.end_time_unix_nano == after.start_time_unix_nano
    assert attributes_of(prefill.attributes)["gen_ai.usage.input_tokens"] == 3
    assert attributes_of(decode.attributes)["gen_ai.usage.output_tokens"] == len(ANSWER_IDS)
    [resource, *_] = collector.resources
    assert resource["service.name"] == "tokasaurus"
    assert resource["service.instance.id"] == "server0"


def test_a_clients_trace_goes_on() -> None:
    async def check(server: TinyServer) -> None:
        for traceparent in (TRACEPARENT, "not a traceparent"):
            body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
            headers = {"traceparent": traceparent, "tracestate": "a=b"}
            response = await server.post("/v1/chat/completions", body, headers=headers)
            assert response.status_code == 200

    ours, own = traced(check).roots()
    assert (ours.trace_id.hex(), ours.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    assert ours.trace_state == "a=b"
    assert own.trace_id.hex() != TRACE_ID
    assert not own.parent_span_id


def test_what_was_not_sampled_is_not_sent() -> None:
    async def check(server: TinyServer) -> None:
        headers = {"traceparent": TRACEPARENT[:-2] + "00"}
        await server.post("/v1/completions", {"prompt": "The"}, headers=headers)

    assert not traced(check).spans


def test_samples_are_told_apart_up_to_some() -> None:
    async def check(server: TinyServer) -> None:
        await server.complete(n=3, max_tokens=2)
        await server.complete(n=40, max_tokens=2)

    collector = traced(check)
    few, many = collector.roots()
    indices = [
        attributes_of(s.attributes)["tokasaurus.sample.index"] for s in collector.children_of(few)
    ]
    assert sorted(indices) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert attributes_of(few.attributes)["gen_ai.usage.output_tokens"] == 6
    assert len(collector.children_of(many)) == 3 * 16
    assert attributes_of(many.attributes)["gen_ai.usage.output_tokens"] == 80


def test_without_output_there_is_no_decode() -> None:
    async def check(server: TinyServer) -> None:
        await server.post("/v1/embeddings", {"input": "The"})
        await server.post("/v1/score", {"text_1": "The", "text_2": " fox"})

    collector = traced(check)
    assert [root.name for root in collector.roots()] == ["embeddings tiny", "score tiny"]
    for root in collector.roots():
        assert [span.name for span in phases(collector, root)] == ["queued", "prefill"]


def test_refusals_and_failures() -> None:
    async def check(server: TinyServer) -> None:
        await server.error("/v1/completions", {"prompt": "The", "n": 0})
        server.manager.fail_with = "it broke"
        await server.error("/v1/completions", {"prompt": "The"}, 500)

    collector = traced(check)
    refused, failed = collector.roots()
    assert attributes_of(refused.attributes)["http.response.status_code"] == 400
    assert refused.status.code == Status.STATUS_CODE_UNSET
    assert not collector.children_of(refused)
    assert failed.status.code == Status.STATUS_CODE_ERROR
    assert "it broke" in failed.status.message
    assert attributes_of(failed.attributes)["error.type"] == "error"


def test_cancelled_in_the_queue() -> None:
    """The manager lets go after the client has left: the span waits for both."""

    async def check(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        await server.error("/v1/completions", {"prompt": "The", "timeout": 0.01}, 504)

    collector = traced(check)
    [root] = collector.roots()
    assert [span.name for span in collector.children_of(root)] == ["queued"]
    assert attributes_of(root.attributes)["http.response.status_code"] == 504


def test_other_paths_and_other_servers_are_not_traced() -> None:
    async def check(server: TinyServer) -> None:
        await server.http.get("/metrics")
        await server.post("/tokenize", {"prompt": "a"})

    assert not traced(check).spans

    async def untraced(server: TinyServer) -> None:
        [generation] = server.state.engine.submit(
            [_prompt()], stream=False, default_max_tokens=2
        ).generations
        assert generation.trace is None
        await asyncio.sleep(0.01)

    run(untraced)


def _prompt() -> Any:
    from tokasaurus.server.prompts import Prompt

    return Prompt([5], SamplingParams(max_tokens=2))


@pytest.mark.parametrize("status", [200, 500])
def test_the_number_of_open_samples_is_counted(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "_EXPORT_TIMEOUT_SECONDS", 60.0)
    now = time.monotonic()
    sample = SampleTimes(
        index=0,
        submitted_at=now,
        queue_seconds=1.0,
        first_token_at=now + 2.0,
        ended_at=now + 3.0,
        num_prompt_tokens=1,
        num_cached_tokens=0,
        num_output_tokens=4,
        num_preemptions=0,
        preempted=[],
        finish_reason="stop",
    )
    with collecting() as collector:
        tracer = RequestTracer(collector.url, model_name="m", instance="i")
        trace = tracer.begin("chat", {}, {})
        trace.begin_sample({})
        trace.end_response(status)
        tracer._provider.force_flush()
        assert not collector.spans
        trace.end_sample(sample)
        tracer.close()
    [root] = collector.roots()
    assert len(collector.children_of(root)) == 3
    seen = attributes_of(root.attributes)
    assert seen["http.response.status_code"] == status
    assert seen["gen_ai.usage.output_tokens"] == 4
