"""The manager's benchmark measures every kind of case and leaves nothing behind between rounds."""

import bench_manager
import pytest
from bench_manager import Forecasts, Onboarding, main


def test_steps_are_told_beside_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--batch-sizes 4 --context 32 --num-queued 40 --rounds 2 --num-steps 5"
    main([*options.split(), "--churn-tokens", "8", "--no-decisions"])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split("|")[1:-1] for line in lines[3:]]
    names = ["reference", "steady, B=4", "churn, B=4", "leases, B=4"]
    assert [row[0].strip() for row in rows] == names
    assert all(float(row[1]) >= float(row[2]) >= 0 for row in rows)
    assert all(int(row[4]) > 0 for row in rows[1:])


@pytest.mark.parametrize("are_samples", [True, False])
def test_onboarding_can_be_repeated(monkeypatch: pytest.MonkeyPatch, are_samples: bool) -> None:
    monkeypatch.setattr(bench_manager, "NUM_RUNNING", 4)
    monkeypatch.setattr(bench_manager, "NUM_ONBOARDED", 6)
    case = Onboarding(are_samples=are_samples, num_tokens=40)
    assert all(len(case.measure()) == 1 for _ in range(3))


def test_forecasts_take_all_that_run() -> None:
    assert len(Forecasts(4, 400).measure()) == 3
