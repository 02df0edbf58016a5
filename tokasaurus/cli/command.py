"""What all commands share: --help, --version, and errors as one line on stderr with exit code 1."""

import sys
from collections.abc import Callable
from typing import TypeVar

import tokasaurus
from tokasaurus.config.strict_config import StrictConfig, format_help
from tokasaurus.errors import TokasaurusError

_INTERRUPTED = 130

C = TypeVar("C", bound=StrictConfig)


def run_command(
    name: str,
    about: str,
    config_type: type[C],
    run: Callable[[C], int],
    args: list[str] | None = None,
) -> int:
    """Parse the arguments into `config_type`, run, and return the exit code."""
    arguments = sys.argv[1:] if args is None else args
    if {"--help", "-h", "help"} & set(arguments):
        print(f"{about}\n\nOptions, with their defaults:")
        print(format_help(config_type.options().values()))
        return 0
    if "--version" in arguments:
        print(f"{name} {tokasaurus.__version__}")
        return 0
    try:
        return run(config_type.from_args(arguments))
    except TokasaurusError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
