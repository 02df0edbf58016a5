"""What arrives at a UDP socket."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.unit.observability.filled_measurements import filled
from tokasaurus.errors import ConfigError
from tokasaurus.observability import metrics
from tokasaurus.observability.measurements import Measurements
from tokasaurus.observability.statsd import StatsdSender, parse_address, statsd_name


@contextmanager
def sender_and_socket(measurements: Measurements) -> Iterator[tuple[StatsdSender, socket.socket]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as received:
        received.bind(("127.0.0.1", 0))
        received.settimeout(60)
        sender = StatsdSender(f"127.0.0.1:{received.getsockname()[1]}", measurements)
        yield sender, received
        sender.close()


def lines(received: socket.socket) -> list[str]:
    """What has been sent so far."""
    received.sendto(b"end", received.getsockname())
    found: list[str] = []
    while (datagram := received.recv(65536)) != b"end":
        found += datagram.decode().split("\n")
    return found


def test_every_line_is_of_the_protocol() -> None:
    with sender_and_socket(filled()) as (sender, received):
        sender.send()
        sent = lines(received)
    assert len(sent) > len(metrics.CATALOGUE)
    for line in sent:
        assert re.fullmatch(r"tokasaurus(\.[A-Za-z0-9_-]+)+:\d+(\.\d+)?\|[cg]", line), line


def test_counters_are_increments_and_gauges_are_values() -> None:
    measurements = Measurements()
    finished = measurements.number(metrics.REQUESTS_FINISHED, "stop")
    running = measurements.number(metrics.RUNNING, "1")
    name = "tokasaurus.requests_finished_total.stop"
    with sender_and_socket(measurements) as (sender, received):
        finished.value, running.value = 3, 2
        sender.send()
        sent = lines(received)
        assert f"{name}:3|c" in sent
        assert "tokasaurus.sequences_running.dp_rank_1:2|g" in sent
        sender.send()
        sent = lines(received)
        assert not [line for line in sent if line.startswith(name)]
        assert "tokasaurus.sequences_running.dp_rank_1:2|g" in sent
        finished.value = 1  # counted from 0 again
        sender.send()
        assert f"{name}:1|c" in lines(received)


def test_histograms_are_about_the_interval() -> None:
    measurements = Measurements()
    histogram = measurements.histogram(metrics.TIME_TO_FIRST_TOKEN, "0")
    name = "tokasaurus.time_to_first_token_seconds.dp_rank_0"
    with sender_and_socket(measurements) as (sender, received):
        for value in (0.02, 0.04):
            histogram.observe(value)
        sender.send()
        sent = lines(received)
        assert {f"{name}.count:2|c", f"{name}.mean:0.03|g", f"{name}.p50:0.025|g"} <= set(sent)
        sender.send()
        assert not [line for line in lines(received) if line.startswith(name)]
        histogram.observe(100.0)
        sender.send()
        assert {f"{name}.count:1|c", f"{name}.mean:100|g"} <= set(lines(received))


def test_nobody_has_to_listen() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    sender = StatsdSender(address, filled())
    for _ in range(3):
        sender.send()
    sender.close()


def test_names_hold_no_separators() -> None:
    assert (
        statsd_name(metrics.HTTP_RESPONSES, ("GET", "/v1/models/{name:path}", "404"))
        == "http_responses_total.GET.v1_models_name_path.404"
    )


def test_addresses() -> None:
    assert parse_address("localhost:8125") == ("localhost", 8125)
    assert parse_address("[::1]:1") == ("::1", 1)


@pytest.mark.parametrize("address", ["", "localhost", ":8125", "host:", "host:0", "host:x"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ConfigError, match="must be host:port"):
        parse_address(address)
