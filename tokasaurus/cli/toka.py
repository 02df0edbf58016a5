"""toka: serve a model behind OpenAI's API until stopped."""

import sys

from tokasaurus.cli.command import run_command
from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.launch.foreground import run_engine

_ABOUT = """\
usage: toka [key=value ...]

Serves a model behind OpenAI's API; without arguments, the embedded demo model.
For example:  toka model=meta-llama/Llama-3.2-1B-Instruct port=8000

  --help      show this
  --version   show the version"""


def main(args: list[str] | None = None) -> int:
    return run_command("toka", _ABOUT, EngineConfig, run_engine, args)


if __name__ == "__main__":
    sys.exit(main())
