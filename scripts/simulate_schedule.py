"""Replay a workload through the real manager with a simulated device, in virtual time.

    python scripts/simulate_schedule.py TRACE [key=value ...] [--policy P | --compare] [options]

TRACE is monkeys, chat, documents or agents, with parameters as key=value, or a JSONL file (the
format: `read_jsonl` in simulation/traces.py). Examples:

    python scripts/simulate_schedule.py monkeys prompts=128 samples=1024 --compare --plot plan.png
    python scripts/simulate_schedule.py chat requests=1000000 rate=2000 --replicas 8

Several replicas are replayed in several processes, which divides the time but deals clients to
groups of replicas before anything has run (simulation/dealing.py); --processes 1 replays all of
them together, with a load balancer that sees what every replica has finished.

A CPU's worker decodes several times before it answers where no client streams (those of the chat
trace do: `streamed=0.0` changes that); `--set max_decode_repeats=1` has it answer every step.
"""

import argparse
import dataclasses
import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from simulation.device import HARDWARE, MODELS, Hardware, Model, num_kv_tokens
from simulation.parallel import ProcessError, replay_in_processes
from simulation.policies import POLICIES, predict
from simulation.replay import Deployment, Replay
from simulation.report import as_dict, build_report, format_table
from simulation.result import ReplayResult
from simulation.traces import TraceError, find_trace
from simulation.workload import Trace

from tokasaurus.errors import ConfigError
from tokasaurus.manager.settings import ManagerSettings

_Spec = TypeVar("_Spec", Hardware, Model)
_GC_THRESHOLD = 100_000
"""As in the manager: many long-lived objects without cycles."""


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    try:
        make_trace = find_trace(options.trace, options.parameters)
        deployment = build_deployment(options)
        options.processes = num_processes(options)
    except (TraceError, ConfigError) as error:
        sys.exit(f"simulate_schedule.py: {error}")
    names = list(POLICIES) if options.compare else [options.policy]
    try:
        results = {name: run(name, options, deployment, make_trace) for name in names}
    except ProcessError as error:
        sys.exit(f"simulate_schedule.py: {error}")
    reports = {name: build_report(result) for name, result in results.items()}
    if options.json:
        print(json.dumps({name: as_dict(report) for name, report in reports.items()}, indent=2))
    else:
        print(describe(options, deployment))
        print(format_table(reports))
    for result in results.values():
        if result.requests.num_refused:
            print(f"refused, for example: {result.requests.reason_refused}", file=sys.stderr)
    if options.plot:
        # Only here, because drawing needs a package that replaying does not.
        from simulation.plot import write_plot

        write_plot(options.plot, results, options.trace)


def run(
    policy: str,
    options: argparse.Namespace,
    deployment: Deployment,
    make_trace: Callable[[], Trace],
) -> ReplayResult:
    """Raises ProcessError."""
    if options.processes > 1:
        return replay_in_processes(deployment, POLICIES[policy], make_trace, options.processes)
    replay = Replay(deployment, POLICIES[policy], predict if options.plot else None)
    replay.run(make_trace())
    return replay.result()


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("trace", metavar="TRACE")
    add("parameters", metavar="key=value", nargs="*", help="parameters of the trace's generator")
    add("--policy", choices=list(POLICIES), default="default", help="who is admitted when")
    add("--compare", action="store_true", help="replay under every policy")
    add("--replicas", type=int, default=1, help="data-parallel managers, each with its device")
    add(
        "--processes",
        type=int,
        help="replay groups of replicas side by side; default: one per CPU, or 1 with --plot",
    )
    add("--device", choices=list(HARDWARE), default="h200")
    add("--model", choices=list(MODELS), help="default: 8b on a GPU, 135m on a CPU")
    for field in _numbers(Hardware):
        name = field.name.replace("_", "-")
        add(f"--{name}", type=float, help=f"instead of the device's {field.name}")
    for field in _numbers(Model):
        name = field.name.replace("_", "-")
        add(f"--{name}", type=float, help=f"instead of the model's {field.name}")
    add("--kv-tokens", type=int, help="KV cache of a replica; default: what the memory holds")
    add("--max-model-len", type=int, default=131_072)
    add("--page-size", type=int, default=16)
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a manager's setting")
    add("--no-hydragen", action="store_true", help="the device can't share prefixes in attention")
    add("--json", action="store_true", help="print JSON instead of a table")
    add("--plot", type=Path, metavar="FILE", help="write a PNG")
    return parser.parse_intermixed_args(arguments)


def build_deployment(options: argparse.Namespace) -> Deployment:
    """Raises ConfigError."""
    hardware = _changed(HARDWARE[options.device], options)
    model = _changed(MODELS[options.model or _default_model(options.device)], options)
    kv_tokens = options.kv_tokens or num_kv_tokens(hardware, model)
    num_blocks = kv_tokens // options.page_size
    if num_blocks < 1:
        raise ConfigError("no block fits: the weights fill the memory; say --kv-tokens")
    return Deployment(
        hardware=hardware,
        model=model,
        settings=build_settings(hardware, options.page_size, options.set),
        num_replicas=options.replicas,
        num_blocks=num_blocks,
        max_model_len=options.max_model_len,
        supports_hydragen=not options.no_hydragen,
    )


def num_processes(options: argparse.Namespace) -> int:
    """Raises ConfigError."""
    if options.processes is None:
        return 1 if options.plot else min(options.replicas, len(os.sched_getaffinity(0)))
    if not 1 <= options.processes <= options.replicas:
        raise ConfigError(f"--processes {options.processes}: say 1 to --replicas")
    if options.plot and options.processes > 1:
        raise ConfigError("--plot needs what only --processes 1 keeps: predictions")
    return options.processes


def build_settings(hardware: Hardware, page_size: int, words: list[str]) -> ManagerSettings:
    """Those that suit the device, changed by words like max_seqs_per_forward=512.

    Raises ConfigError.
    """
    settings = ManagerSettings(
        page_size=page_size,
        max_tokens_per_forward=hardware.max_tokens,
        max_seqs_per_forward=hardware.max_seqs,
        scheduling_steps_ahead=hardware.steps_ahead,
    )
    known = [field.name for field in dataclasses.fields(settings)]
    changes = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in known:
            raise ConfigError(f"--set {word}: the settings are {', '.join(known)}")
        try:
            changes[name] = json.loads(value)
        except ValueError:
            raise ConfigError(f"--set {word}: {value!r} is not a JSON value") from None
    return dataclasses.replace(settings, **changes)


def describe(options: argparse.Namespace, deployment: Deployment) -> str:
    settings = deployment.settings
    dealt = ""
    if options.processes > 1:
        dealt = (
            f"; {options.processes} processes with a part of the replicas each, dealt their "
            "clients ahead by prefix and by work as it would be on an idle device"
        )
    return (
        f"{' '.join([options.trace, *options.parameters])} on {deployment.num_replicas} x "
        f"{options.device} with {options.model or _default_model(options.device)}: "
        f"{deployment.num_blocks:,} blocks of {settings.page_size} tokens, at most "
        f"{settings.num_slots:,} sequences and {settings.max_tokens_per_forward:,} tokens a step, "
        f"{settings.scheduling_steps_ahead} steps ahead{dealt}"
    )


def _default_model(device: str) -> str:
    return "135m" if device == "cpu" else "8b"


def _numbers(spec: type[Hardware | Model]) -> list[dataclasses.Field]:
    """Its fields that the command line may change."""
    return [field for field in dataclasses.fields(spec) if field.type is not bool]


def _changed(spec: _Spec, options: argparse.Namespace) -> _Spec:
    """With the fields that the command line gives."""
    changes: dict[str, Any] = {}
    for field in _numbers(type(spec)):
        value = getattr(options, field.name)
        if value is not None:
            changes[field.name] = int(value) if field.type is int else value
    return dataclasses.replace(spec, **changes)


if __name__ == "__main__":
    gc.set_threshold(_GC_THRESHOLD)
    main()
