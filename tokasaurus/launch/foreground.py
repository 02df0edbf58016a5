"""Runs a whole engine, server included, until a signal stops it: what the `toka` command does."""

import logging
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.errors import ProcessFailedError
from tokasaurus.launch.announcement import announcement
from tokasaurus.launch.local_model import localize_model
from tokasaurus.launch.startup_display import StartupDisplay
from tokasaurus.launch.supervisor import Supervisor
from tokasaurus.launch.topology import build_topology
from tokasaurus.observability.logging import setup_logging
from tokasaurus.server.listening import bind_socket

log = logging.getLogger(__name__)


def run_engine(config: EngineConfig) -> int:
    """Serve until SIGINT or SIGTERM; the exit code is 0 after an asked-for stop, else 1.

    A second signal ends everything at once. Raises ConfigError when the port is taken, and
    ModelError when there is no such model.
    """
    setup_logging("supervisor", config.log_level)
    bind_socket(config.host, config.port).close()  # a port that is taken shows at once
    config = localize_model(config)
    started = time.monotonic()
    display = StartupDisplay(sys.stderr)
    supervisor = Supervisor(config, build_topology(config, with_server=True), display)
    with _stopped_by_signals(supervisor):
        try:
            if supervisor.start():
                lines = announcement(config, supervisor.ready_texts, time.monotonic() - started)
                display.write_line("\n".join(lines))
                supervisor.watch()
        except ProcessFailedError as error:
            display.finish()
            log.critical("%s", error)
            return 1
        finally:
            supervisor.stop()
    log.info("stopped")
    return 0


@contextmanager
def _stopped_by_signals(supervisor: Supervisor) -> Iterator[None]:
    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if supervisor.stop_requested:
            supervisor.kill()
        else:
            supervisor.request_stop()

    earlier = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
