"""scripts/gpu_check.py on a CPU with tiny shapes: what a GPU will run, as far as a CPU can."""

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_check.py"


def run(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--quick", "--out", str(out)]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=200, check=False
    )


@pytest.mark.slow
def test_parts_write_what_they_find(tmp_path: Path) -> None:
    """Slow: compiles models, up to a minute."""
    done = run(tmp_path, "--parts", "environment", "ceilings", "llama-1b", "chat")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert {part["status"] for part in found.values()} == {"done"}
    rows = found["llama-1b"]["findings"]
    assert {row["what"] for row in rows} == {"decode", "prefill"}, rows
    assert all(row["share_of_roofline"] > 0 for row in rows)
    assert all(row["num_recompiles"] == 0 for row in rows)
    variants = {row["variant"] for row in rows}
    assert variants == {"default", "compiled", "no graphs", "torch attention"}
    assert found["chat"]["findings"][0]["num_output_tokens"] > 0
    assert "decode llama-1b compiled greedy batch_size=4" in (tmp_path / "table.txt").read_text()


def test_a_part_that_fails_loses_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, "--parts", "environment", "llama-1b")
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert done.returncode == 1
    assert found["environment"]["status"] == "done"
    assert found["environment"]["findings"][0]["packages"]["torch"]
    assert {row["what"] for row in found["llama-1b"]["findings"]} <= {"failed"}
    assert "ceilings" in json.dumps(found["llama-1b"])
    assert set(found) == {"environment", "llama-1b"}


def test_parts_without_time_are_skipped(tmp_path: Path) -> None:
    done = run(tmp_path, "--parts", "environment", "ceilings", "--seconds", "0")
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert done.returncode == 1
    assert {name: part["status"] for name, part in found.items()} == {
        "environment": "skipped",
        "ceilings": "skipped",
    }
    assert "environment: skipped in 0.0 s no time was left" in done.stdout


HANGS = """
import signal, sys
from pathlib import Path
from gpu_check_parts.findings import Findings

out = Path(sys.argv[sys.argv.index("--out") + 1])
Findings(out / "environment.json").add(what="found in time")
(out / "has_found").touch()
signal.pause()
"""


def test_a_part_that_overruns_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is up when the part has found something; what it has found is kept."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import gpu_check

    class OutOfTime(subprocess.Popen[str]):
        def wait(self, timeout: float | None = None) -> int:
            if timeout is None:
                return super().wait(60)
            deadline = time.monotonic() + 60
            while not (tmp_path / "has_found").exists():
                assert time.monotonic() < deadline, (tmp_path / "environment.log").read_text()
                time.sleep(0.01)
            raise subprocess.TimeoutExpired(self.args, timeout)

    script = tmp_path / "hangs.py"
    script.write_text(HANGS)
    monkeypatch.setattr(gpu_check, "__file__", str(script))
    monkeypatch.setattr(gpu_check.subprocess, "Popen", OutOfTime)
    arguments = Namespace(device="cpu", quick=True)
    part = next(part for part in gpu_check.PARTS if part.name == "environment")
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    status = gpu_check.run_boxed(part, 5.0, arguments, tmp_path, environment)
    assert (status.status, status.error) == ("overran", "stopped after 5 s")
    gpu_check.write_everything(tmp_path, {"environment": status})
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert found["environment"]["findings"] == [{"what": "found in time"}]
