"""A port that nobody can listen on is found before anything starts."""

import socket

import pytest

from tokasaurus.errors import ConfigError
from tokasaurus.launch.listen_address import check_can_listen, url_for


def test_free_port() -> None:
    check_can_listen("127.0.0.1", 0)


def test_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1.*port=0"):
            check_can_listen("127.0.0.1", port)


def test_address_that_is_not_ours() -> None:
    with pytest.raises(ConfigError, match="port 80 of 192"):
        check_can_listen("192.0.2.1", 80)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:5"),
        ("0.0.0.0", "http://127.0.0.1:5"),
        ("::1", "http://[::1]:5"),
        ("box.local", "http://box.local:5"),
    ],
)
def test_url(host: str, url: str) -> None:
    assert url_for(host, 5) == url
