"""Sockets are bound early, and failures say what to do."""

import socket

import pytest

from tokasaurus.errors import ConfigError
from tokasaurus.server.listening import bind_socket, url_of


def test_free_port() -> None:
    with bind_socket("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        assert url_of("127.0.0.1", bound) == f"http://127.0.0.1:{port}"
        assert url_of("0.0.0.0", bound) == f"http://127.0.0.1:{port}"
        assert url_of("::1", bound) == f"http://[::1]:{port}"


def test_port_in_use() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} .*port=0 for a free one"):
            bind_socket("127.0.0.1", port)


def test_no_address_of_this_machine() -> None:
    with pytest.raises(ConfigError, match="host 'not an address'"):
        bind_socket("not an address", 0)
