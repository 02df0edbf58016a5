"""A whole engine with its server, started from Python."""

import threading
from typing import Any, Self

from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.errors import EngineFailedError
from tokasaurus.launch.background import BackgroundEngine
from tokasaurus.launch.topology import SERVER_NAME
from tokasaurus.server.listening import bind_socket


class ServeHandle:
    """A running server; it stops at `close`, at the end of a `with` block or of the program."""

    def __init__(self, config: EngineConfig, *, show_progress: bool = True) -> None:
        self._ended = threading.Event()
        self.failure: str | None = None
        """Why the engine stopped by itself; None as long as it runs, and after `close`."""
        bind_socket(config.host, config.port).close()  # a port that is taken shows at once
        self._engine = BackgroundEngine(
            config, with_server=True, on_failure=self._fail, show_progress=show_progress
        )
        self.config = self._engine.config
        self.url = self._engine.start()[SERVER_NAME]
        """Of the server, without the /v1 of the API."""
        self.model = self.config.public_model_name
        """The name to request."""

    def wait(self, timeout_seconds: float | None = None) -> None:
        """Until the server ends or the time is over. Raises EngineFailedError if it failed."""
        self._ended.wait(timeout_seconds)
        if self.failure is not None:
            raise EngineFailedError(self.failure)

    def close(self) -> None:
        """Stop all processes; safe to call twice."""
        self._engine.close()
        self._ended.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fail(self, reason: str) -> None:
        self.failure = reason
        self._ended.set()


def serve(
    config: EngineConfig | str = "demo", *, show_progress: bool = True, **options: Any
) -> ServeHandle:
    """Start a server and return when it takes requests.

    `config` is an EngineConfig or just the model; `options` are EngineConfig's, on top of it.
    Raises ConfigError, ModelError or ProcessFailedError when it can't start.
    """
    if isinstance(config, str):
        config = EngineConfig(model=config)
    return ServeHandle(config.replace(**options), show_progress=show_progress)
