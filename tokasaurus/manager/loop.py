"""The manager's loop: take in what arrived, keep the worker fed, tell the servers what is new."""

import logging
import time
from collections.abc import Callable, Sequence

from tokasaurus.errors import ProcessFailedError
from tokasaurus.ipc.channels import Inbox, Outbox
from tokasaurus.ipc.messages.to_manager import (
    CancelRequests,
    GenerateRequest,
    GenerateRequests,
    ServerHello,
    Shutdown,
    StepOutput,
    ToManager,
    WorkerReady,
)
from tokasaurus.ipc.messages.to_server import EngineOutputs, ManagerReady
from tokasaurus.manager.engine import Engine
from tokasaurus.manager.onboarding import AdmissionPolicy
from tokasaurus.manager.settings import ManagerSettings
from tokasaurus.manager.silent_workers import describe_silence
from tokasaurus.manager.stats import StatsClock, build_stats

log = logging.getLogger(__name__)

_SILENCE_SECONDS = 60.0
"""A worker that owes an answer for this long is worth a warning."""
_PEERS_WORDS_SECONDS = 10.0
"""Workers that wait for one that hangs notice first, and know which one it is."""


class Manager:
    """Drives an `Engine` between channels."""

    def __init__(
        self,
        settings: ManagerSettings,
        worker: WorkerReady,
        inbox: Inbox[ToManager],
        worker_outboxes: list[Outbox],
        connect: Callable[[str], Outbox],
        clock: Callable[[], float] = time.monotonic,
        policy: AdmissionPolicy | None = None,
        worker_pids: Sequence[int] = (),
    ) -> None:
        """`connect` opens an outbox to a server's address. `worker_pids`: the workers', by rank."""
        self.engine = Engine(settings, worker, policy, clock)
        self._settings = settings
        self._worker = worker
        self._inbox = inbox
        self._worker_outboxes = worker_outboxes
        self._server_outboxes: dict[int, Outbox] = {}
        self._connect = connect
        self._clock = clock
        self._worker_pids = worker_pids
        self._stats_clock = StatsClock(settings.stats_interval_seconds)
        self._last_output = clock()
        self._has_warned = False
        self._is_stopping = False

    def run(self) -> None:
        """Serve until `Shutdown` comes."""
        while not self._is_stopping:
            busy = self.engine.num_steps_in_flight
            self.tick(self._settings.stats_interval_seconds if busy else _SILENCE_SECONDS)
        for outbox in self._server_outboxes.values():
            outbox.close()

    def tick(self, timeout_seconds: float = 0.0) -> None:
        """One loop iteration; waits so long for a message, since only messages change anything."""
        for message in self._receive(timeout_seconds):
            self._handle(message)
        if not self.engine.num_steps_in_flight:
            self._last_output = self._clock()  # what is sent now is owed from now on
        while (step := self.engine.schedule()) is not None:
            for outbox in self._worker_outboxes:
                outbox.send(step)
        for server_index, outputs in self.engine.take_messages().items():
            self._send(server_index, outputs)
        now = self._clock()
        self._send_stats(now)
        self._watch_worker(now)
        if self._settings.debug_checks:
            self.engine.check_invariants()

    def greet(self, hello: ServerHello) -> None:
        """Connect to a server and tell it the limits."""
        previous = self._server_outboxes.pop(hello.server_index, None)
        if previous is not None:
            previous.close()
        outbox = self._connect(hello.address)
        self._server_outboxes[hello.server_index] = outbox
        outbox.send(
            ManagerReady(
                dp_rank=self._settings.dp_rank,
                max_model_len=self._worker.max_model_len,
                vocab_size=self._worker.vocab_size,
                num_kv_tokens=self._worker.num_blocks * self._settings.page_size,
                description=self._worker.description,
                hidden_size=self._worker.hidden_size,
            )
        )

    def _receive(self, timeout_seconds: float) -> list[ToManager]:
        if timeout_seconds <= 0:
            return self._inbox.drain()
        first = self._inbox.receive(timeout_seconds)
        return [] if first is None else [first, *self._inbox.drain()]

    def _handle(self, message: ToManager) -> None:
        match message:
            case StepOutput():
                self._last_output = self._clock()
                self.engine.apply(message)
            case GenerateRequest():
                self.engine.submit(message)
            case GenerateRequests(requests=requests):
                for request in requests:
                    self.engine.submit(request)
            case CancelRequests(request_ids=request_ids):
                self.engine.cancel(request_ids)
            case ServerHello():
                self.greet(message)
            case Shutdown():
                self._is_stopping = True
            case WorkerReady(rank=rank):
                log.warning("worker %d said that it is ready once more", rank)

    def _send(self, server_index: int, message: EngineOutputs) -> None:
        outbox = self._server_outboxes.get(server_index)
        if outbox is None:
            log.warning("dropped outputs for server %d, which is not connected", server_index)
        else:
            outbox.send(message)

    def _send_stats(self, now: float) -> None:
        if not self._stats_clock.is_due(now, is_idle=self.engine.is_idle):
            return
        stats = build_stats(
            self._settings.dp_rank,
            self.engine.gauges(),
            self.engine.update_counters(),
            self.engine.hydragen_share,
        )
        for outbox in self._server_outboxes.values():
            outbox.send(stats)

    def _watch_worker(self, now: float) -> None:
        if not self.engine.num_steps_in_flight:
            return
        silence = now - self._last_output
        limit = self._settings.step_timeout_seconds
        if len(self._worker_pids) > 1:
            limit += _PEERS_WORDS_SECONDS
        if silence > limit:
            raise ProcessFailedError(
                f"{describe_silence(self._settings.dp_rank, self._worker_pids)}: a step was not "
                f"done after {silence:.0f} s. Raise step_timeout_seconds if steps take so long."
            )
        if silence > _SILENCE_SECONDS and not self._has_warned:
            log.warning("the worker has not answered for %.0f s", silence)
        self._has_warned = silence > _SILENCE_SECONDS
