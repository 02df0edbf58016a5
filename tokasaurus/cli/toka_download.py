"""toka-download: fetch a model from the Hugging Face hub, so that serving it starts at once."""

import sys

from tokasaurus.cli.command import run_command
from tokasaurus.config.model_files import DEMO_MODEL, read_model_config, resolve_model
from tokasaurus.config.strict_config import StrictConfig
from tokasaurus.errors import ConfigError

_ABOUT = """\
usage: toka-download model=<hub id>

Downloads a model from the Hugging Face hub into its cache, and prints the folder.
For example:  toka-download model=meta-llama/Llama-3.2-1B-Instruct

  --help      show this
  --version   show the version"""


class DownloadConfig(StrictConfig):
    """Options of toka-download."""

    model: str = ""
    """Hub id of the model, such as meta-llama/Llama-3.2-1B-Instruct."""

    def validate(self) -> None:
        if not self.model:
            raise ConfigError("Say which model: toka-download model=<hub id>.")
        if self.model == DEMO_MODEL:
            raise ConfigError("The demo model is part of the package and needs no download.")


def download(config: DownloadConfig) -> int:
    folder = resolve_model(config.model)
    architecture = read_model_config(folder).architecture
    print(f"{config.model} ({architecture}) is in {folder}")
    print(f"Serve it:  toka model={config.model}")
    return 0


def main(args: list[str] | None = None) -> int:
    return run_command("toka-download", _ABOUT, DownloadConfig, download, args)


if __name__ == "__main__":
    sys.exit(main())
