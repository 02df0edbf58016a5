"""The socket that a server listens on, bound before anything slow starts."""

import socket

from tokasaurus.errors import ConfigError

_ANY_ADDRESSES = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not bound to


def bind_socket(host: str, port: int) -> socket.socket:
    """Bound, not yet listening; port 0 takes a free one. Raises ConfigError if it can't be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(f"host {host!r} is not an address of this machine: {error}.") from error
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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
