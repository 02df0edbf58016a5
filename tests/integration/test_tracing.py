"""Traces of a real engine, as a collector receives them."""

import httpx

from tests.integration.conftest import SMALL
from tests.integration.engine_process import EngineProcess
from tests.otlp_collector import attributes_of, collecting

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_a_streamed_request_of_a_traced_client() -> None:
    with (
        collecting() as collector,
        EngineProcess((*SMALL, f"otlp_traces_endpoint={collector.url}")) as process,
    ):
        process.wait_until_ready()
        body = {"prompt": "def add(", "max_tokens": 8, "stream": True, "ignore_eos": True}
        headers = {"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"}
        reply = httpx.post(f"{process.url}/v1/completions", json=body, headers=headers, timeout=60)
        assert reply.text.endswith("data: [DONE]\n\n")
        assert process.stop() == 0, process.output
    [root] = collector.roots()
    assert root.trace_id.hex() == TRACE_ID
    seen = attributes_of(root.attributes)
    assert seen["gen_ai.usage.output_tokens"] == 8
    assert seen["gen_ai.response.finish_reasons"] == ["length"]
    children = sorted(collector.children_of(root), key=lambda span: span.start_time_unix_nano)
    assert [span.name for span in children] == ["queued", "prefill", "decode"]
    durations = [span.end_time_unix_nano - span.start_time_unix_nano for span in children]
    assert all(duration > 0 for duration in durations)


def test_an_endpoint_that_is_none_is_refused_at_start() -> None:
    with EngineProcess((*SMALL, "otlp_traces_endpoint=localhost:4318")) as process:
        assert process.wait(timeout_seconds=120) != 0
    assert "must be the URL of a collector" in process.output
