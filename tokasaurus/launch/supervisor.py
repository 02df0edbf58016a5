"""Starts the processes of an engine, waits until all are ready, watches them, and stops them.

The supervisor never touches requests. One thread runs `start`, `watch` and `stop`; any thread, or a
signal handler, may call `request_stop` and `kill`.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.errors import ProcessFailedError, ProtocolError
from tokasaurus.ipc.addresses import Addresses
from tokasaurus.ipc.channels import ZmqInbox, ZmqOutbox
from tokasaurus.ipc.messages.to_manager import Shutdown
from tokasaurus.ipc.messages.to_supervisor import Failed, Progress, Ready, ToSupervisor
from tokasaurus.launch.child import ChildOrders
from tokasaurus.launch.child_process import ChildProcess
from tokasaurus.launch.cpu_share import thread_environment, usable_cores
from tokasaurus.launch.startup_display import StartupDisplay
from tokasaurus.launch.topology import ProcessSpec
from tokasaurus.server.listening import reserve_port

log = logging.getLogger(__name__)

_WATCH_SECONDS = 0.1
"""How often the children are looked at."""
_LAST_WORDS_SECONDS = 0.5
"""A child's `Failed` may arrive this long after its end."""
_FAILURE_GRACE_SECONDS = 5.0
"""After a failure, the others get at most this long to end by themselves."""
_TERMINATE_SECONDS = 2.0
"""Time between SIGTERM and SIGKILL."""
_KILL_SECONDS = 10.0
"""A killed process that is still there after this long hangs in the kernel; it is left behind."""
_POLL_SECONDS = 0.02


class Supervisor:
    """The processes of one engine, below one private socket directory.

    Construction raises ConfigError if several servers can't share the port.

    `start`, then `watch`, then always `stop`. Both of the former raise ProcessFailedError when a
    process fails, with the reason; they return early when a stop has been asked for.
    """

    def __init__(
        self, config: EngineConfig, specs: list[ProcessSpec], display: StartupDisplay
    ) -> None:
        num_servers = sum(spec.role == "server" for spec in specs)
        self._config, self._reserved_port = (
            reserve_port(config) if num_servers > 1 else (config, None)
        )
        self._specs = specs
        self._display = display
        self._children: list[ChildProcess] = []
        self._waiting_for: set[str] = set()
        self._stop_requested = threading.Event()
        self._kill_requested = threading.Event()
        self._failed = False
        self.addresses = Addresses.create()
        self._inbox: ZmqInbox[ToSupervisor] = ZmqInbox(self.addresses.supervisor(), ToSupervisor)
        self.ready_texts: dict[str, str] = {}
        """What each process said when it became ready, by process name."""

    @property
    def stop_requested(self) -> bool:
        return self._stop_requested.is_set()

    def request_stop(self) -> None:
        """Make `start` or `watch` return soon."""
        self._stop_requested.set()

    def kill(self) -> None:
        """Make `stop` end the processes at once, without letting them finish anything."""
        self._stop_requested.set()
        self._kill_requested.set()

    def start(self) -> bool:
        """Start all processes and wait until they are ready; False if a stop was asked for."""
        self._waiting_for = {spec.name for spec in self._specs if spec.says_ready}
        deadline = time.monotonic() + self._config.ready_timeout_seconds
        cores = usable_cores()
        for spec in self._specs:
            self._start_child(spec, cores)
        while self._waiting_for and not self.stop_requested:
            self._watch_once()
            if time.monotonic() > deadline:
                late = ", ".join(sorted(self._waiting_for))
                self._fail(
                    f"{late} did not become ready within "
                    f"{self._config.ready_timeout_seconds:g} seconds; allow more time with "
                    "ready_timeout_seconds=..., or look at the log lines above."
                )
        self._display.finish()
        return not self.stop_requested

    def watch(self) -> None:
        """Return when a stop is asked for; raise when a process fails."""
        while not self.stop_requested:
            self._watch_once()

    def stop(self) -> None:
        """End all processes, wait for them, and remove the sockets. Safe to call twice."""
        self._display.finish()
        grace = self._config.shutdown_timeout_seconds
        if self._failed:
            grace = min(grace, _FAILURE_GRACE_SECONDS)
        if self._waiting_for:  # nothing has been accepted yet, and inboxes may not be read
            grace = 0.0
        else:
            self._send_shutdown()
        if not self._wait_for_end(grace):
            self._signal_all(ChildProcess.terminate)
            if not self._wait_for_end(_TERMINATE_SECONDS):
                self._signal_all(ChildProcess.kill)
                self._wait_for_end(_KILL_SECONDS, give_up_on_kill=False)
        for child in self._children:
            if child.exit_code is None:
                log.error("%s (pid %d) does not end, even when killed", child.name, child.pid)
            else:
                child.close()
        self._children.clear()
        self._inbox.close()
        self.addresses.remove()
        if self._reserved_port is not None:
            self._reserved_port.close()

    def on_child_end(self, child: ChildProcess) -> None:
        """A child has ended without being asked: the engine fails.

        The place where a policy that restarts processes would decide.
        """
        self._fail(self._last_words(child) or child.describe_end())

    def _start_child(self, spec: ProcessSpec, cores: int) -> None:
        orders = ChildOrders(
            spec=spec,
            addresses=self.addresses,
            config_json=self._config.to_json(),
            supervisor_pid=os.getpid(),
        )
        environment = thread_environment(self._config, spec, os.environ, cores)
        self._children.append(ChildProcess(orders, environment, self._display.write_line))

    def _watch_once(self) -> None:
        message = self._receive(_WATCH_SECONDS)
        if message is not None:
            self._handle(message)
            return  # messages first: a reason comes before the end that it explains
        for child in self._children:
            if child.exit_code is not None and not self.stop_requested:
                self.on_child_end(child)

    def _handle(self, message: ToSupervisor) -> None:
        match message:
            case Progress():
                if self._waiting_for:
                    self._display.update(message)
            case Ready():
                log.debug("%s is ready: %s", message.process, message.text)
                self.ready_texts[message.process] = message.text
                self._waiting_for.discard(message.process)
                self._display.process_ready(message.process)
            case Failed():
                self._fail(f"{message.process} failed: {message.reason}")

    def _fail(self, reason: str) -> NoReturn:
        self._failed = True
        raise ProcessFailedError(reason)

    def _last_words(self, child: ChildProcess) -> str | None:
        """The reason that a child which has exited by itself sent before."""
        deadline = time.monotonic() + _LAST_WORDS_SECONDS
        while child.exit_code and child.exit_code > 0:
            seconds_left = deadline - time.monotonic()
            if seconds_left <= 0:
                break
            message = self._receive(seconds_left)
            if isinstance(message, Failed):
                return f"{message.process} failed: {message.reason}"
        return None

    def _receive(self, timeout_seconds: float) -> ToSupervisor | None:
        try:
            return self._inbox.receive(timeout_seconds)
        except ProtocolError as error:
            log.warning("dropped a message: %s", error)
            return None

    def _send_shutdown(self) -> None:
        for child in self._children:
            if child.exit_code is None and not child.spec.is_stopped_by_manager:
                outbox = ZmqOutbox(child.spec.inbox(self.addresses))
                outbox.send(Shutdown())
                outbox.close()

    def _signal_all(self, send: Callable[[ChildProcess], None]) -> None:
        for child in self._children:
            send(child)

    def _wait_for_end(self, seconds: float, *, give_up_on_kill: bool = True) -> bool:
        """Whether all children ended within the time, and before `kill` was called."""
        deadline = time.monotonic() + seconds
        while None in [child.exit_code for child in self._children]:  # asks all: reaps the ended
            if give_up_on_kill and self._kill_requested.is_set():
                return False
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True
