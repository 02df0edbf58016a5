"""Check an NVIDIA GPU and measure on it, without network: correctness, speed, idle time.

    python scripts/gpu_check.py --out DIR [--wheels DIR] [--seconds 530] [--parts NAME ...]

Every part runs in a process and a time box of its own, and what it finds is in DIR from then on:
DIR/gpu_check.json (everything), DIR/table.txt, and a log per part. `--wheels` is a folder with
wheels of packages that are missing (FlashInfer and what it needs); they are installed below DIR,
and so are the caches of compilers. `--device cpu --quick` tries the same code with tiny shapes.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from gpu_check_parts.findings import Findings, findings_of
from gpu_check_parts.table import render

ROOT = Path(__file__).resolve().parents[1]
_GRACE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Part:
    """A function `(Setting, Findings) -> None` of `gpu_check_parts`, and its time."""

    name: str
    module: str
    function: str
    seconds: float
    arguments: tuple[str, ...] = ()


PARTS = (
    Part("environment", "environment", "describe", 40),
    Part("ceilings", "ceilings", "measure_ceilings", 40),
    Part("kernels", "environment", "compile_kernels", 200),
    Part("llama-1b", "model_speed", "measure_model", 90, ("llama-1b",)),
    Part("tests", "correctness", "run_tests", 100, ("not variants",)),
    Part("llama-8b", "model_speed", "measure_model", 110, ("llama-8b",)),
    Part("monkeys", "end_to_end", "measure_monkeys", 80),
    Part("chat", "end_to_end", "measure_chat", 50),
    Part("transformers", "peers", "measure_transformers", 60),
    Part("variants", "correctness", "run_tests", 150, ("variants",)),
)


@dataclass(slots=True)
class Status:
    """How a part ended."""

    status: str
    seconds: float
    error: str = ""


def main() -> None:
    args = parse_arguments()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if args.run_part:
        run_part(next(part for part in PARTS if part.name == args.run_part), args, out)
        return
    deadline = time.monotonic() + args.seconds
    environment = prepared_environment(out, args.wheels)
    if args.device == "cpu":  # shapes too small to share; threads would wait for each other
        environment["OMP_NUM_THREADS"] = "1"
    statuses: dict[str, Status] = {}
    for part in PARTS:
        if args.parts and part.name not in args.parts:
            continue
        limit = min(part.seconds, deadline - time.monotonic() - _GRACE_SECONDS)
        statuses[part.name] = run_boxed(part, limit, args, out, environment)
        write_everything(out, statuses)
        status = statuses[part.name]
        print(f"{part.name}: {status.status} in {status.seconds:.1f} s {status.error}", flush=True)
    print((out / "table.txt").read_text())
    found = [finding for name in statuses for finding in findings_of(out, name)]
    if any(status.status != "done" for status in statuses.values()) or any(
        finding.get("what") == "failed" for finding in found
    ):
        sys.exit(1)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for results and caches")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install below --out")
    parser.add_argument("--seconds", type=float, default=530, help="for everything together")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: to try the code")
    parser.add_argument("--run-part", help=argparse.SUPPRESS)
    return parser.parse_args()


def prepared_environment(out: Path, wheels: Path | None) -> dict[str, str]:
    """Variables of the parts' processes: where packages are, and where compilers keep caches."""
    site, caches = out / "site", out / "caches"
    if wheels is not None:
        files = sorted(str(path) for path in wheels.glob("*.whl"))
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
        command += ["--no-compile", "--no-cache-dir", "--upgrade", "--target", str(site), *files]
        subprocess.run(command, check=True)
    paths = [str(site), str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "FLASHINFER_WORKSPACE_BASE": str(caches),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
    }


def run_boxed(
    part: Part, limit: float, args: argparse.Namespace, out: Path, environment: dict[str, str]
) -> Status:
    """Run the part in a process of its own, which ends with all its children when time is up."""
    if limit <= 0:
        return Status("skipped", 0.0, "no time was left")
    command = [sys.executable, str(Path(__file__).resolve()), "--out", str(out)]
    command += ["--device", args.device, "--run-part", part.name]
    command += ["--quick"] if args.quick else []
    began = time.monotonic()
    with (out / f"{part.name}.log").open("w") as log:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return Status("overran", time.monotonic() - began, f"stopped after {limit:.0f} s")
    seconds = time.monotonic() - began
    if code == 0:
        return Status("done", seconds)
    last = (out / f"{part.name}.log").read_text(errors="replace").strip().splitlines()[-1:]
    return Status("failed", seconds, (last or [f"exit code {code}"])[0][:300])


def run_part(part: Part, args: argparse.Namespace, out: Path) -> None:
    """In the part's own process."""
    import torch
    from gpu_check_parts.part import Setting

    from tokasaurus.errors import TokasaurusError

    setting = Setting(device=torch.device(args.device), quick=args.quick, out=out)
    findings = Findings(out / f"{part.name}.json")
    findings.path.unlink(missing_ok=True)
    module = importlib.import_module(f"gpu_check_parts.{part.module}")
    try:
        getattr(module, part.function)(*part.arguments, setting, findings)
    except TokasaurusError as error:
        sys.exit(str(error))


def write_everything(out: Path, statuses: dict[str, Status]) -> None:
    """All parts' findings so far, as JSON and as a table."""
    as_dicts = {name: asdict(status) for name, status in statuses.items()}
    document = {
        name: {**status, "findings": findings_of(out, name)} for name, status in as_dicts.items()
    }
    (out / "gpu_check.json").write_text(json.dumps(document, indent=1))
    (out / "table.txt").write_text(render(out, as_dicts) + "\n")


if __name__ == "__main__":
    main()
