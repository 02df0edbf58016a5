"""The manager's state and verbs, free of channels: submit, cancel, apply an output, schedule."""

import logging
import time
from collections import deque
from collections.abc import Callable

from tokasaurus.errors import ProtocolError
from tokasaurus.ipc.messages.to_manager import GenerateRequest, StepOutput, WorkerReady
from tokasaurus.ipc.messages.to_server import EngineOutputs, FinishReason, RequestFinished
from tokasaurus.ipc.messages.to_worker import StepInput
from tokasaurus.manager.leases import LeasePlanner
from tokasaurus.manager.onboarding import AdmissionPolicy, Onboarder
from tokasaurus.manager.output_handling import OutputHandler
from tokasaurus.manager.preemption import Preempter
from tokasaurus.manager.prefill_pacing import PrefillPacer
from tokasaurus.manager.queues import RequestQueue
from tokasaurus.manager.running_set import RunningSet
from tokasaurus.manager.scheduler import Scheduler
from tokasaurus.manager.sequence import Sequence, SequenceState
from tokasaurus.manager.settings import ManagerSettings
from tokasaurus.manager.simulated_admission import SimulateFuture
from tokasaurus.manager.stats import Counters, Gauges
from tokasaurus.manager.step_building import StepBuilder, StepInFlight
from tokasaurus.manager.stop_tokens import StopTokens
from tokasaurus.manager.stopping_predictor import StoppingPredictor

log = logging.getLogger(__name__)


class Engine:
    """Every accepted request gets exactly one `RequestFinished`, whatever happens."""

    def __init__(
        self,
        settings: ManagerSettings,
        worker: WorkerReady,
        policy: AdmissionPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._clock = clock
        self.counters = Counters()
        self.queue = RequestQueue(settings.priority_aging_seconds)
        self.running = RunningSet(
            settings.num_slots, worker.max_model_len, worker.num_blocks, settings.page_size
        )
        self._pacer = PrefillPacer(settings)
        self.policy = policy or SimulateFuture(settings, StoppingPredictor(), self._pacer)
        self._worker = worker
        self._sequences: dict[int, Sequence] = {}
        """All that have not ended, by request id."""
        self._num_arrivals = 0
        self._stop_tokens = StopTokens(worker.vocab_size)
        self._preempter = Preempter(self.queue, self.running, clock)
        self._onboarder = Onboarder(self.queue, self.running, self.policy)
        self._leases = LeasePlanner(settings, worker.capabilities, self.running)
        self._scheduler = Scheduler(
            settings,
            worker.capabilities,
            self.running,
            self._preempter,
            self._pacer,
            self._leases,
        )
        self._builder = StepBuilder(self.running)
        self._in_flight: deque[StepInFlight] = deque()
        self._max_in_flight = settings.max_steps_in_flight
        self._outputs = OutputHandler(
            settings.dp_rank, self.running, self._stop_tokens, self._finish
        )

    @property
    def num_steps_in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def is_idle(self) -> bool:
        return not self._sequences

    @property
    def hydragen_share(self) -> float:
        """Of the KV tokens that the last decodes attended to, those that groups read once."""
        return self._scheduler.hydragen_share

    def submit(self, request: GenerateRequest) -> None:
        """Queue a request, or end it at once if it can't run or has nothing left to do."""
        if request.request_id in self._sequences:
            log.warning("request %d came twice; the second is ignored", request.request_id)
            return
        sequence = Sequence.from_request(request, self._num_arrivals, self._clock())
        self._num_arrivals += 1
        self._sequences[request.request_id] = sequence
        self._stop_tokens.add(request.stop_token_ids)
        self.counters.num_prompt_tokens += sequence.num_prompt_tokens
        self.queue.push(sequence)
        error = self._reason_to_refuse(sequence)
        outputs = request.output_ids
        if error is not None:
            self._finish(sequence, "error", error=error)
        elif outputs is not None and outputs.size and outputs[-1] in request.stop_token_ids:
            self._finish(sequence, "stop", stop_token_id=int(outputs[-1]))
        elif sequence.token_ids.size >= sequence.max_num_tokens:
            self._finish(sequence, "length")

    def cancel(self, request_ids: list[int]) -> None:
        """End these requests; ids that are unknown or have ended are ignored."""
        for request_id in request_ids:
            sequence = self._sequences.get(request_id)
            if sequence is not None:
                self._finish(sequence, "cancelled")

    def apply(self, output: StepOutput) -> None:
        """Take in the result of the oldest step in flight."""
        if not self._in_flight:
            raise ProtocolError(f"the worker answered step {output.step_id}, but none was due")
        step = self._in_flight.popleft()
        num_passes = self._outputs.handle(step, output)
        self.counters.num_steps += num_passes
        if step.only_decodes:
            self._leases.observe(step.row_slots.size, num_passes, output.execute_seconds)
        self.counters.worker_wait_seconds += output.wait_seconds
        self.counters.worker_execute_seconds += output.execute_seconds
        self.counters.device_idle_seconds += output.device_idle_seconds
        self.counters.device_busy_seconds += output.device_busy_seconds
        self.counters.num_recompiles += output.num_recompiles
        self.counters.bubble_seconds += output.bubble_seconds
        self._preempter.settle()

    def schedule(self) -> StepInput | None:
        """Onboard what fits and plan one more step; None while there is nothing more to run."""
        if len(self._in_flight) >= self._max_in_flight and not self._ends_leases():
            return None
        while True:
            self._onboarder.onboard()
            num_preemptions = self._preempter.num_preemptions
            step = self._scheduler.schedule()
            if step is not None:
                break
            if num_preemptions == self._preempter.num_preemptions:
                return None
        step_input, in_flight = self._builder.build(step)
        self._in_flight.append(in_flight)
        for chunk in step.chunks:
            if chunk.is_first:
                self._note_start(chunk.sequence)
        return step_input

    def _ends_leases(self) -> bool:
        """Whether a step beyond those in flight is due: one of them is a lease, and ends as soon
        as the worker has a step that changes the batch."""
        if len(self._in_flight) > self._max_in_flight:
            return False
        if all(step.max_passes == 1 for step in self._in_flight):
            return False
        self._onboarder.onboard()
        return bool(self.running.prefilling or self.running.freed_slots)

    def _note_start(self, sequence: Sequence) -> None:
        seconds = self._clock() - sequence.queued_at
        if sequence.queue_seconds is None:
            sequence.queue_seconds = seconds
            self.counters.num_cached_tokens += sequence.num_cached_tokens or 0
        elif not sequence.has_run_since_it_waited:
            sequence.resumed_at.append(seconds)

    def onboard(self) -> None:
        """Give seats to whoever fits, as every `schedule` does first."""
        self._onboarder.onboard()

    def take_messages(self) -> dict[int, EngineOutputs]:
        """What is new for each server since the last call."""
        return self._outputs.take_messages()

    def update_counters(self) -> Counters:
        """Totals since start, complete up to now."""
        self.counters.num_output_tokens = self._outputs.num_output_tokens
        self.counters.num_preemptions = self._preempter.num_preemptions
        return self.counters

    def gauges(self) -> Gauges:
        blocks = self.running.blocks
        return Gauges(
            num_queued=len(self.queue),
            num_running=self.running.num_running,
            num_blocks=blocks.num_blocks,
            num_blocks_in_use=blocks.num_in_use,
            num_blocks_cached=blocks.num_cached,
        )

    def _reason_to_refuse(self, sequence: Sequence) -> str | None:
        """Why the request could never run; None if it can."""
        request, worker = sequence.request, self._worker
        lengths = f"{sequence.num_prompt_tokens} prompt tokens + max_tokens {request.max_tokens}"
        if sequence.num_prompt_tokens < 1 or request.max_tokens < 1:
            return f"{lengths}: both must be at least 1"
        if request.pooling and not (worker.hidden_size and request.max_tokens == 1):
            return f"{lengths}: a vector takes the place of one token, where the worker makes any"
        num_positions = sequence.max_num_tokens - bool(request.pooling)
        if num_positions > worker.max_model_len:
            return f"{lengths} exceed the model's context of {worker.max_model_len} tokens"
        if sequence.max_num_blocks(self.settings.page_size) > worker.num_blocks:
            num_tokens = worker.num_blocks * self.settings.page_size
            return f"{lengths} exceed the KV cache of {num_tokens} tokens"
        return None

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        stop_token_id: int | None = None,
        error: str | None = None,
    ) -> None:
        """The one place where a request ends, in whatever state it is."""
        if sequence.state is SequenceState.QUEUED:
            self.queue.remove(sequence)
        else:
            num_outputs = int(self.running.slots.num_known[sequence.slot])
            num_outputs -= sequence.num_prompt_tokens
            # A stop string found by the server looks like a cancellation.
            is_stop = reason in ("stop", "cancelled")
            self.policy.observe(sequence, num_outputs, is_stop=is_stop)
            self._pacer.observe(num_outputs)
            self.running.release(sequence, is_sound=reason != "error")
        sequence.state = SequenceState.FINISHED
        del self._sequences[sequence.request_id]
        self._stop_tokens.remove(sequence.request.stop_token_ids)
        self._outputs.finish(
            RequestFinished(
                request_id=sequence.request_id,
                reason=reason,
                num_cached_tokens=sequence.num_cached_tokens or 0,
                stop_token_id=stop_token_id,
                num_preemptions=sequence.num_preemptions,
                error=error,
                queue_seconds=sequence.queue_seconds,
                preempted_at=sequence.preempted_at,
                resumed_at=sequence.resumed_at,
            )
        )

    def check_invariants(self) -> None:
        self.running.check_invariants()
        self.queue.check_invariants()
        if isinstance(self.policy, SimulateFuture):
            self.policy.check_invariants(self.running)
        self._stop_tokens.check_invariants(
            [sequence.request.stop_token_ids for sequence in self._sequences.values()]
        )
        seated = [sequence for sequence in self.running.slots.sequences if sequence is not None]
        queued = list(self.queue)
        live = [*queued, *seated]
        assert len(live) == len(self._sequences)
        for sequence in live:
            assert self._sequences[sequence.request_id] is sequence
        for sequence in queued:
            assert sequence.state is SequenceState.QUEUED
        num_in_flight = sum(map(self.running.slots.num_tokens_in_flight, (s.slot for s in seated)))
        num_rows = sum(
            step.max_passes
            * int((self.running.slots.epochs[step.row_slots] == step.row_epochs).sum())
            + sum(self.running.slots.epochs[s] == e for s, e in step.embedded_epochs.items())
            for step in self._in_flight
        )
        assert num_in_flight == num_rows, f"{num_in_flight} tokens but {num_rows} rows in flight"
