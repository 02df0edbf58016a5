"""A worker that does not answer ends the manager, with the name of the one that hangs."""

import psutil
import pytest

from tests.unit.manager.harness import Harness, make_request
from tokasaurus.errors import ProcessFailedError
from tokasaurus.manager import silent_workers
from tokasaurus.manager.silent_workers import describe_silence


def test_a_step_that_is_owed_for_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = Harness(step_timeout_seconds=30)
    manager, now = harness.manager, 100.0
    monkeypatch.setattr(manager, "_clock", lambda: now)
    manager.tick()
    now = 1000.0  # nobody has owed anything, in a single wait
    harness.submit(make_request(0, [1, 2, 3], 4))
    manager.tick()
    now += 30.0
    manager.tick()
    now += 1.0
    with pytest.raises(ProcessFailedError, match=r"worker0\.0 hangs: .* after 31 s.*step_timeout"):
        manager.tick()


def test_halted_processes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {10: psutil.STATUS_SLEEPING, 11: psutil.STATUS_STOPPED, 12: psutil.STATUS_RUNNING}
    monkeypatch.setattr(silent_workers, "_state", lambda pid: states[pid])
    assert describe_silence(1, [10, 11, 12]) == "worker1.1 hangs (stopped)"
    assert describe_silence(1, [10, 12]) == "one of worker1.0 to worker1.1 hangs"
    assert describe_silence(0, [12]) == "worker0.0 hangs"


def test_a_process_has_a_state() -> None:
    assert silent_workers._state(psutil.Process().pid) == psutil.STATUS_RUNNING
    assert silent_workers._state(2**22 + 1) == psutil.STATUS_DEAD
