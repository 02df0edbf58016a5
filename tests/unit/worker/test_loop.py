"""Order of launching, reading back and answering."""

from dataclasses import dataclass

import msgspec
import numpy as np
import pytest

from tokasaurus.ipc.channels import MemoryChannel
from tokasaurus.ipc.messages.to_manager import (
    RunnerCapabilities,
    Shutdown,
    StepOutput,
    ToManager,
)
from tokasaurus.ipc.messages.to_worker import StepInput, ToWorker
from tokasaurus.worker.loop import WorkerLoop
from tokasaurus.worker.runner import GoesOn, always


@dataclass
class RecordedHandle:
    """Writes down when its result is asked for."""

    step_id: int
    events: list[str]

    def result(self) -> StepOutput:
        self.events.append(f"read {self.step_id}")
        return StepOutput(step_id=self.step_id, token_ids=np.array([self.step_id], np.int32))


class RecordingRunner:
    """Writes down what the loop does."""

    capabilities = RunnerCapabilities()
    num_blocks = max_model_len = vocab_size = 1
    description = "recording"

    def __init__(self) -> None:
        self.events: list[str] = []

    def load(self, progress: object) -> None: ...

    def warm_up(self, progress: object) -> None: ...

    def execute(self, step: StepInput, goes_on: GoesOn = always) -> RecordedHandle:
        self.events.append(f"launch {step.step_id}")
        for _ in range(step.max_passes - 1):
            if not goes_on():
                break
            self.events.append(f"again {step.step_id}")
        return RecordedHandle(step.step_id, self.events)


class TrickledInbox:
    """Delivers messages in batches: a drain takes the next batch, a wait its first message."""

    def __init__(self, batches: list[list[ToWorker]]) -> None:
        self._batches = batches

    def receive(self, timeout_seconds: float | None) -> ToWorker | None:
        assert timeout_seconds is None
        while not self._batches[0]:
            self._batches.pop(0)
        return self._batches[0].pop(0)

    def drain(self) -> list[ToWorker]:
        return self._batches.pop(0) if self._batches else []

    def may_have_more(self) -> bool:
        return bool(self._batches)

    @property
    def descriptor(self) -> int | None:
        return None

    def close(self) -> None: ...


def step(step_id: int) -> StepInput:
    return StepInput(step_id=step_id)


def run(batches: list[list[ToWorker]], overlap: bool) -> tuple[list[str], list[StepOutput]]:
    runner = RecordingRunner()
    outputs: MemoryChannel[ToManager] = MemoryChannel(ToManager)
    WorkerLoop(runner, TrickledInbox(batches), outputs, overlap=overlap).run()
    received = outputs.drain()
    assert all(isinstance(output, StepOutput) for output in received)
    return runner.events, [output for output in received if isinstance(output, StepOutput)]


def test_without_overlap_each_step_is_answered_before_the_next() -> None:
    events, outputs = run([[step(0), step(1)], [], [step(2)], [], [Shutdown()]], overlap=False)
    assert events == ["launch 0", "read 0", "launch 1", "read 1", "launch 2", "read 2"]
    assert [output.step_id for output in outputs] == [0, 1, 2]
    assert all(output.execute_seconds >= 0 and output.wait_seconds >= 0 for output in outputs)


def test_overlap_launches_the_next_step_first() -> None:
    batches: list[list[ToWorker]] = [[step(0), step(1)], [step(2)], [], [], [Shutdown()]]
    events, outputs = run(batches, overlap=True)
    assert events == ["launch 0", "launch 1", "read 0", "launch 2", "read 1", "read 2"]
    assert [output.step_id for output in outputs] == [0, 1, 2]


@pytest.mark.parametrize("overlap", [True, False])
def test_last_step_is_answered_though_nothing_follows(overlap: bool) -> None:
    """The manager may wait for the last result before it sends anything else."""
    events, _ = run([[step(0)], [], [], [step(1)], [], [], [Shutdown()]], overlap)
    assert events == ["launch 0", "read 0", "launch 1", "read 1"]


def test_shutdown_answers_what_is_launched() -> None:
    events, outputs = run([[step(0), step(1)], [Shutdown(), step(2)]], overlap=True)
    assert events == ["launch 0", "launch 1", "read 0", "read 1"]
    assert [output.step_id for output in outputs] == [0, 1]


def test_result_fields_are_kept() -> None:
    _, (output,) = run([[step(3)], [], [], [Shutdown()]], overlap=False)
    assert msgspec.structs.asdict(output)["token_ids"].tolist() == [3]


def test_a_worker_that_does_not_answer_runs_all_the_same() -> None:
    runner = RecordingRunner()
    WorkerLoop(runner, TrickledInbox([[step(0)], [], [], [Shutdown()]]), None, overlap=True).run()
    assert runner.events == ["launch 0", "read 0"]


def lease(step_id: int) -> StepInput:
    return StepInput(step_id=step_id, max_passes=4)


FREEING = StepInput(step_id=1, freed_slots=np.array([0], np.int32))
PREFILLING = StepInput(step_id=1, prefill_slots=np.array([0], np.int32))


@pytest.mark.parametrize("change", [FREEING, PREFILLING])
def test_what_changes_the_batch_ends_a_lease(change: StepInput) -> None:
    batches: list[list[ToWorker]] = [[lease(0)], [], [change], [], [Shutdown()]]
    events, _ = run(batches, overlap=False)
    assert events == ["launch 0", "again 0", "read 0", "launch 1", "read 1"]


def test_a_lease_that_waits_behind_makes_way_at_once() -> None:
    change = msgspec.structs.replace(FREEING, step_id=2)
    events, _ = run([[lease(0), lease(1), change], [], [], [], [Shutdown()]], overlap=False)
    assert events == [f"{verb} {i}" for i in range(3) for verb in ("launch", "read")]


def test_what_decodes_on_waits_for_the_end_of_a_lease() -> None:
    moved = StepInput(step_id=1, decode_slots=np.array([1], np.int32))
    events, _ = run([[lease(0), moved], [], [], [], [Shutdown()]], overlap=False)
    assert events == ["launch 0", *["again 0"] * 3, "read 0", "launch 1", "read 1"]


def test_a_lease_that_is_told_to_shut_down_is_answered() -> None:
    events, outputs = run([[lease(0)], [], [Shutdown()]], overlap=False)
    assert events == ["launch 0", "again 0", "read 0"]
    assert len(outputs) == 1
