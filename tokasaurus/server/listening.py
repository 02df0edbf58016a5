"""The socket that a server listens on, bound before anything slow starts."""

import math
import socket
import sys

from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.errors import ConfigError

_MAX_MILLISECONDS = 2**31 - 1
_ANY_ADDRESSES = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not bound to


def bind_socket(
    host: str, port: int, *, shared: bool = False, stall_seconds: float | None = None
) -> socket.socket:
    """Bound, not yet listening; port 0 takes a free one. Raises ConfigError if it can't be had.

    `shared`: others that say so, too, may bind to the same port; the kernel spreads connections
    evenly over those that listen. `stall_seconds`: where the system can (Linux), it ends
    connections whose peer has taken nothing for so long; without, they last as long as the peer
    answers probes, and what was to be sent stays in memory.
    """
    if shared and sys.platform != "linux":
        raise ConfigError(
            "server_workers above 1 needs Linux, where the kernel spreads connections over the "
            "processes that listen; leave it out."
        )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(f"host {host!r} is not an address of this machine: {error}.") from error
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if stall_seconds is not None and sys.platform == "linux":  # accepted sockets inherit it
        milliseconds = math.ceil(min(stall_seconds * 1000, _MAX_MILLISECONDS))
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise cannot_listen(host, port, error) from error
    return bound


def cannot_listen(host: str, port: int, error: OSError) -> ConfigError:
    """What to say when `error` came of binding to a port or listening on it."""
    return ConfigError(
        f"Can't listen on port {port} of {host} ({error.strerror}); choose another with port=..., "
        "or port=0 for a free one."
    )


def url_of(host: str, bound: socket.socket, *, is_tls: bool = False) -> str:
    """How a client on this machine reaches it."""
    reachable = _ANY_ADDRESSES.get(host, host)
    port = bound.getsockname()[1]
    scheme = "https" if is_tls else "http"
    name = f"[{reachable}]" if ":" in reachable else reachable
    return f"{scheme}://{name}:{port}"


def reserve_port(config: EngineConfig) -> tuple[EngineConfig, socket.socket | None]:
    """Options that name the port that several servers are going to share, and a socket that keeps
    it until it is closed; a lone server finds its port by itself.

    Raises ConfigError if the port is taken.
    """
    if config.server_workers == 1:
        return config, None
    # Sockets that share a port would join those of another engine: it has to be all ours at first.
    bind_socket(config.host, config.port).close()
    reserved = bind_socket(config.host, config.port, shared=True)
    return config.replace(port=reserved.getsockname()[1]), reserved
