"""The worker's loop: receive steps, launch them in order, read back and send results.

With overlap, step k+1 is launched before the result of step k is read back, so that a device that
works asynchronously never waits for the host. Without, a step may be a lease of several passes: the
loop looks into its inbox between them.
"""

import time
from collections import deque
from dataclasses import dataclass

import msgspec

from tokasaurus.ipc.channels import Inbox, Outbox
from tokasaurus.ipc.messages.to_manager import Shutdown
from tokasaurus.ipc.messages.to_worker import StepInput, ToWorker
from tokasaurus.worker.runner import GoesOn, ModelRunner, StepHandle


@dataclass(slots=True)
class _Launched:
    handle: StepHandle
    started: float
    wait_seconds: float


class WorkerLoop:
    """Runs until it receives `Shutdown`."""

    def __init__(
        self,
        runner: ModelRunner,
        inbox: Inbox[ToWorker],
        manager: Outbox | None,
        *,
        overlap: bool,
    ) -> None:
        """`manager` is None on a worker whose results another one of the replica sends."""
        self._runner = runner
        self._inbox = inbox
        self._manager = manager
        self._overlap = overlap
        self._steps: deque[StepInput] = deque()
        self._in_flight: _Launched | None = None
        self._wait_seconds = 0.0
        self._last_finished = 0.0
        self._shutting_down = False
        self._goes_on = GoesOn(self._may_go_on, inbox.descriptor)
        self._is_awaited = False
        """Something waits that ends a lease, as of the last look."""

    def run(self) -> None:
        """Steps that have been launched are answered before this returns."""
        while not self._shutting_down:
            self._receive()
            if self._shutting_down or not self._steps:
                self._finish_in_flight()
                continue
            launched = self._launch(self._steps.popleft())
            self._finish_in_flight()
            self._in_flight = launched
            if not self._overlap:
                self._finish_in_flight()

    def _receive(self) -> None:
        """Take what is there while a step runs; else wait for one, and for no more than that: where
        the manager is ahead the next one is there already, and looking for more costs time."""
        if self._in_flight is not None:
            for message in self._inbox.drain():
                self._accept(message)
        elif not self._steps:
            began = time.perf_counter()
            received = self._inbox.receive(None)
            self._wait_seconds += time.perf_counter() - began
            if received is not None:
                self._accept(received)

    def _accept(self, message: ToWorker) -> None:
        if isinstance(message, Shutdown):
            self._shutting_down = True
        else:
            self._steps.append(message)

    def _launch(self, step: StepInput) -> _Launched:
        started, waited = time.perf_counter(), self._wait_seconds
        self._wait_seconds = 0.0
        if step.max_passes > 1:
            self._look()  # and from then on only when more has come
        return _Launched(self._runner.execute(step, self._goes_on), started, waited)

    def _may_go_on(self) -> bool:
        """Whether nothing has come that ends a lease. What only decodes waits for its turn."""
        if self._inbox.may_have_more():
            self._look()
        return not self._is_awaited

    def _look(self) -> None:
        for message in self._inbox.drain():
            self._accept(message)
        changes = any(step.changes_batch for step in self._steps)
        self._is_awaited = changes or self._shutting_down

    def _finish_in_flight(self) -> None:
        launched, self._in_flight = self._in_flight, None
        if launched is None:
            return
        output = launched.handle.result()
        finished = time.perf_counter()
        started = max(launched.started, self._last_finished)
        self._last_finished = finished
        if self._manager is None:
            return
        self._manager.send(
            msgspec.structs.replace(
                output,
                wait_seconds=launched.wait_seconds,
                execute_seconds=finished - started,
                device_idle_seconds=max(0.0, output.device_idle_seconds - launched.wait_seconds),
            )
        )
