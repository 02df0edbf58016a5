"""Options of tracing, and the phases of samples."""

from typing import Any

import pytest

from tests.otlp_collector import collecting
from tokasaurus.errors import ConfigError
from tokasaurus.observability import tracing
from tokasaurus.observability.tracing import RequestTracer, SampleTimes


def times(**values: Any) -> SampleTimes:
    defaults: dict[str, Any] = {
        "submitted_at": 10.0,
        "queue_seconds": 1.0,
        "first_token_at": 13.0,
        "ended_at": 20.0,
        "preempted": [],
    }
    return SampleTimes(
        index=0,
        num_prompt_tokens=1,
        num_cached_tokens=0,
        num_output_tokens=1,
        num_preemptions=0,
        finish_reason="stop",
        **(defaults | values),
    )


def test_phases_follow_one_another() -> None:
    assert times().phases() == [
        ("queued", 10.0, 11.0),
        ("prefill", 11.0, 13.0),
        ("decode", 13.0, 20.0),
    ]
    assert times(first_token_at=None).phases()[1:] == [("prefill", 11.0, 20.0)]
    assert times(queue_seconds=None, first_token_at=None).phases() == [("queued", 10.0, 20.0)]


def test_the_wait_of_a_preempted_sequence_is_no_decode() -> None:
    waits = [(12.0, 12.5), (14.0, 15.0), (18.0, 25.0)]
    assert times(preempted=waits).phases() == [
        ("queued", 10.0, 11.0),
        ("prefill", 11.0, 12.0),
        ("preempted", 12.0, 12.5),
        ("prefill", 12.5, 13.0),
        ("decode", 13.0, 14.0),
        ("preempted", 14.0, 15.0),
        ("decode", 15.0, 18.0),
        ("preempted", 18.0, 20.0),
        ("decode", 20.0, 20.0),
    ]


def test_clocks_that_disagree_make_no_negative_phase() -> None:
    for odd in (times(queue_seconds=5.0), times(queue_seconds=50.0, first_token_at=None)):
        ends = [end for _, _, end in odd.phases()]
        assert all(start <= end for _, start, end in odd.phases())
        assert ends[-1] == 20.0


@pytest.mark.parametrize("endpoint", ["", "localhost:4318", "grpc://localhost", "http://"])
def test_no_url(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="must be the URL of a collector"):
        RequestTracer(endpoint, model_name="m", instance="i")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_is_installed", lambda package: False)
    with pytest.raises(ConfigError, match=r"pip install 'tokasaurus\[otel\]'"):
        RequestTracer("http://127.0.0.1:4318/v1/traces", model_name="m", instance="i")


def test_service_name_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    with collecting() as collector:
        tracer = RequestTracer(collector.url, model_name="m", instance="i")
        tracer.begin("chat", {}, {}).end_response(200)
        tracer.close()
    assert collector.resources[0]["service.name"] == "mine"


def test_nobody_has_to_listen(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What can't be sent is given up: `close` comes back, and the log says why."""
    monkeypatch.setattr(tracing, "_EXPORT_TIMEOUT_SECONDS", 0.2)
    with collecting() as collector:
        url = collector.url
    tracer = RequestTracer(url, model_name="m", instance="i")
    tracer.begin("chat", {}, {}).end_response(200)
    tracer.close()
    assert "Failed to export" in caplog.text
