"""Runs an engine under a supervisor in a thread of the caller's process."""

import atexit
import logging
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future

from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.errors import EngineFailedError
from tokasaurus.ipc.addresses import Addresses
from tokasaurus.launch.local_model import localize_model
from tokasaurus.launch.startup_display import StartupDisplay
from tokasaurus.launch.supervisor import Supervisor
from tokasaurus.launch.topology import build_topology

log = logging.getLogger(__name__)


class BackgroundEngine:
    """The processes of one engine, from construction until `close` or the end of this process.

    Construction brings the model here and validates; `start` starts the processes. The supervisor's
    thread starts them, because on Linux a child lives as long as the thread that started it.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        with_server: bool,
        on_failure: Callable[[str], None],
        show_progress: bool = True,
    ) -> None:
        """`on_failure` gets the reason, in the supervisor's thread, if a process fails later."""
        config.validate()
        self.config = localize_model(config)
        self._on_failure = on_failure
        display = StartupDisplay(sys.stderr, quiet=not show_progress)
        topology = build_topology(self.config, with_server=with_server)
        self._supervisor = Supervisor(self.config, topology, display)
        self._started: Future[dict[str, str]] = Future()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    @property
    def addresses(self) -> Addresses:
        return self._supervisor.addresses

    def start(self) -> dict[str, str]:
        """Start, wait until all are ready, and return what they said, by process name.

        Raises ProcessFailedError, with everything stopped, when a process does not become ready.
        """
        atexit.register(self.close)
        self._thread.start()
        try:
            return self._started.result()
        except BaseException:  # KeyboardInterrupt included: leave nothing behind
            self.close()
            raise

    def close(self) -> None:
        """Stop all processes; safe to call twice, and from any thread but the supervisor's."""
        self._supervisor.request_stop()
        if self._thread.ident is not None:
            self._thread.join()
        else:
            self._supervisor.stop()
        atexit.unregister(self.close)

    def _run(self) -> None:
        error: Exception = EngineFailedError("The engine was closed before it was ready.")
        try:
            if self._supervisor.start():
                self._started.set_result(self._supervisor.ready_texts)
                self._supervisor.watch()
        except Exception as raised:
            log.debug("the engine failed", exc_info=True)
            error = raised
            if self._started.done():
                self._on_failure(str(error))
        finally:
            self._supervisor.stop()
            if not self._started.done():
                self._started.set_exception(error)
