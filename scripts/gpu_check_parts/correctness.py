"""Runs tests/gpu and keeps what each test said."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from gpu_check_parts.findings import Findings
from gpu_check_parts.part import CheckError, Setting

_TESTS = Path(__file__).parents[2] / "tests" / "gpu"


def run_tests(selection: str, setting: Setting, findings: Findings) -> None:
    """Those tests that `selection`, as for pytest -k, chooses. Raises CheckError when one fails."""
    report = findings.path.with_suffix(".xml")
    command = [sys.executable, "-m", "pytest", str(_TESTS), "-q", f"--junitxml={report}"]
    command += ["-p", "no:cacheprovider", "--tb=short", "--color=no"]
    command += ["-k", f"({selection}) and quick" if setting.quick else selection]
    environment = {**os.environ, "TOKASAURUS_TEST_DEVICE": setting.device.type}
    log = findings.path.with_suffix(".pytest.log")
    with log.open("w") as output:
        subprocess.run(command, env=environment, stdout=output, stderr=output, check=False)
    if not report.exists():
        raise CheckError(f"pytest did not finish; see {log}")
    failed = 0
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = [child.tag for child in case]
        outcome = next(
            (kind for kind in ("failure", "error", "skipped") if kind in kinds), "passed"
        )
        failed += outcome in ("failure", "error")
        message = "".join(child.get("message", "") for child in case)[:500]
        findings.add(
            test=f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}",
            outcome=outcome,
            message=message,
            seconds=float(case.get("time", 0)),
        )
    if failed:
        raise CheckError(f"{failed} tests failed; see {log}")
