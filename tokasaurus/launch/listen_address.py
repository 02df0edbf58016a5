"""The address that the server will listen on, looked at before anything heavy starts."""

import socket

from tokasaurus.errors import ConfigError

_ANY_ADDRESSES = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to


def check_can_listen(host: str, port: int) -> None:
    """Raises ConfigError if nobody could listen there now. Port 0 means any free one."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ConfigError(f"host {host!r} is not an address of this machine: {error}.") from None
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise ConfigError(
                f"Can't listen on port {port} of {host} ({error.strerror}); choose another with "
                "port=..., or port=0 for a free one."
            ) from None


def url_for(host: str, port: int) -> str:
    """How a client on this machine reaches a server that listens there."""
    reachable = "127.0.0.1" if host in _ANY_ADDRESSES else host
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
