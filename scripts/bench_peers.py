"""Compare Tokasaurus with other engines on the offline workloads: same token ids, greedy, EOS
ignored, everything submitted at once, no HTTP.

    python scripts/bench_peers.py --model DIR --converted DIR --peer openvino=PYTHON \\
        [--peer llamacpp=PYTHON ...] [--dtype bf16 --dtype int8] [ENGINE:key=value ...]

Each engine runs in a process of its own, a peer under the Python that it is installed for, and all
stay loaded while they take turns: in each round each engine gets the same prompts, another one
first each time. Prints medians, and in brackets the median over the rounds of how many times as
fast as the peer Tokasaurus was. `docs/performance.md` says how to install and convert.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from peers.comparison import METRICS, Comparison
from peers.engine_process import ADAPTERS, EngineFailureError, EngineProcess
from peers.protocol import Answer, Settings
from workloads import WORKLOADS, Workload

OURS = "tokasaurus"
MEASURED = sorted({metric.workload for metric in METRICS})
_QUICK_SEQS, _QUICK_PROMPT_TOKENS, _QUICK_OUTPUT_TOKENS = 4, 256, 8
_PAUSE_SECONDS = 0.5
"""Between runs: threads of the last engine that wait actively go to sleep."""


def cut(workload: Workload) -> Workload:
    """A workload's short form: to warm up, or to see that all runs."""
    return replace(
        workload,
        num_seqs=min(workload.num_seqs, _QUICK_SEQS),
        num_shared=min(workload.num_shared, _QUICK_PROMPT_TOKENS),
        num_own=min(workload.num_own, _QUICK_PROMPT_TOKENS),
        num_output_tokens=min(workload.num_output_tokens, _QUICK_OUTPUT_TOKENS),
    )


def in_turn(engines: list[EngineProcess], turn: int) -> list[EngineProcess]:
    """Another one first each turn."""
    first = turn % len(engines)
    return engines[first:] + engines[:first]


def run_all(
    engines: list[EngineProcess],
    workload: Workload,
    run: int,
    pause_seconds: float = _PAUSE_SECONDS,
) -> dict[str, Answer]:
    """What each engine answered, in the order of `engines`."""
    prompts = workload.prompts(run)
    answers = {}
    for engine in in_turn(engines, run):
        time.sleep(pause_seconds)
        answers[engine.name] = engine.run(prompts, workload.num_output_tokens)
    return {engine.name: answers[engine.name] for engine in engines}


def same_first_tokens(answers: dict[str, Answer]) -> dict[str, str]:
    """How many of each peer's outputs start with the token that ours starts with: whether it runs
    the same model."""
    ours = [ids[0] for ids in answers[OURS].output_ids]
    counts = {}
    for name, answer in answers.items():
        same = sum(a == ids[0] for a, ids in zip(ours, answer.output_ids, strict=True))
        counts[name] = f"{same}/{len(ours)}"
    return counts


def compare(
    engines: list[EngineProcess], workloads: list[str], args: argparse.Namespace
) -> Comparison:
    comparison = Comparison(OURS)
    for workload in workloads:
        answers = run_all(engines, cut(WORKLOADS[workload]), 0)
        print(f"{workload}: first tokens as ours: {same_first_tokens(answers)}", flush=True)
    started = time.monotonic()
    for round_ in range(1, args.rounds + 1):
        round_started = time.monotonic()
        for workload in workloads:
            task = cut(WORKLOADS[workload]) if args.quick else WORKLOADS[workload]
            answers = run_all(engines, task, round_)
            comparison.add(workload, task, answers)
            seconds = {name: round(answer.seconds, 2) for name, answer in answers.items()}
            print(f"round {round_}, {workload}: seconds {seconds}", flush=True)
        now = time.monotonic()
        if now - started + (now - round_started) > args.max_seconds and round_ < args.rounds:
            print(f"Stopped after {round_} rounds: another would exceed --max-seconds.")
            break
    return comparison


@contextmanager
def started_engines(args: argparse.Namespace, dtype: str) -> Iterator[list[EngineProcess]]:
    """Ours and the peers, ready; one at a time, so that none slows another's start."""
    with ExitStack() as stack:
        engines = []
        for name, python in [(OURS, sys.executable), *args.peer]:
            prefix = f"{name}:"
            settings = Settings(
                model=str(args.model),
                converted=str(args.converted),
                dtype=dtype,
                num_threads=args.threads,
                options=[w.removeprefix(prefix) for w in args.options if w.startswith(prefix)],
            )
            engine = EngineProcess(name, python, settings)
            stack.callback(engine.close)
            engine.wait_until_ready()
            print(f"{dtype}: {name} is {engine.description}", flush=True)
            engines.append(engine)
        yield engines


def peer(word: str) -> tuple[str, str]:
    name, _, python = word.partition("=")
    if name not in ADAPTERS or name == OURS or not python:
        known = ", ".join(name for name in ADAPTERS if name != OURS)
        raise argparse.ArgumentTypeError(f"say ENGINE=PYTHON with one of {known}, not {word!r}")
    return name, python


def parse_args(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a checkpoint")
    parser.add_argument("--converted", type=Path, default=Path(), help="its other formats' folder")
    parser.add_argument("--peer", type=peer, action="append", default=[], help="ENGINE=PYTHON")
    parser.add_argument("--dtype", action="append", choices=["bf16", "int8"], help="default: bf16")
    parser.add_argument("--workload", action="append", choices=MEASURED, help="default: all")
    parser.add_argument("--rounds", type=int, default=5, help="counted ones, after a short warm-up")
    parser.add_argument(
        "--max-seconds", type=float, default=float("inf"), help="of the rounds, per dtype"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="cut the workloads: no measurement")
    parser.add_argument("--json", type=Path, help="write all rounds to this file")
    parser.add_argument("options", nargs="*", help="ENGINE:key=value, options of an engine")
    args = parser.parse_intermixed_args(words)
    if args.rounds < 1:
        parser.error("--rounds: say 1 or more.")
    names = [OURS, *(name for name, _ in args.peer)]
    if len(set(names)) < len(names):
        parser.error("--peer: say each engine once.")
    for word in args.options:
        name, _, option = word.partition(":")
        if name not in names or "=" not in option:
            parser.error(f"{word!r}: say ENGINE:key=value with one of {', '.join(names)}.")
    return args


def main() -> None:
    args = parse_args()
    document = {}
    for dtype in args.dtype or ["bf16"]:
        try:
            with started_engines(args, dtype) as engines:
                comparison = compare(engines, args.workload or MEASURED, args)
                descriptions = {engine.name: engine.description for engine in engines}
        except EngineFailureError as error:
            raise SystemExit(str(error)) from None
        document[dtype] = {"engines": descriptions, "rounds": comparison.rounds}
        print(f"\n{dtype}{', workloads cut' if args.quick else ''}\n{comparison.table()}\n")
    if args.json:
        args.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
