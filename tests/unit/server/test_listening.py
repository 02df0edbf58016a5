"""Sockets are bound early, and failures say what to do."""

import socket
import sys

import pytest

from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.errors import ConfigError
from tokasaurus.server.listening import bind_socket, reserve_port, url_of


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


def test_no_address_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody_knows(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody_knows)
    with pytest.raises(ConfigError, match="host 'not an address'"):
        bind_socket("not an address", 0)


linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux spreads connections")


@linux
def test_servers_share_a_port_that_nobody_else_can_have() -> None:
    config, reserved = reserve_port(EngineConfig(port=0, server_workers=2))
    assert reserved is not None
    with (
        reserved,
        bind_socket(config.host, config.port, shared=True) as one,
        bind_socket(config.host, config.port, shared=True) as another,
    ):
        one.listen()
        another.listen()
        assert one.getsockname() == another.getsockname() == (config.host, config.port)
        with pytest.raises(ConfigError, match=f"port {config.port}"):
            reserve_port(config)


@linux
@pytest.mark.parametrize(
    ("seconds", "milliseconds"),
    [(60.0, 60_000), (0.0001, 1), (float("inf"), 2**31 - 1), (None, 0)],
)
def test_connections_end_whose_reader_stalls(seconds: float | None, milliseconds: int) -> None:
    with bind_socket("127.0.0.1", 0, stall_seconds=seconds) as bound:
        bound.listen()
        with socket.create_connection(bound.getsockname()), bound.accept()[0] as accepted:
            option = socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT
            assert accepted.getsockopt(*option) == milliseconds


def test_a_lone_server_reserves_nothing() -> None:
    config = EngineConfig(port=0)
    assert reserve_port(config) == (config, None)


def test_other_systems_are_told_that_they_can_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ConfigError, match="server_workers above 1 needs Linux"):
        reserve_port(EngineConfig(port=0, server_workers=2))
