"""What is said once the engine is up: what runs where, and what to try next."""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.launch.topology import SERVER_NAME


def announcement(config: EngineConfig, ready_texts: Mapping[str, str], seconds: float) -> list[str]:
    """Lines for people: the model with its path, device and KV size; the address; what to try.

    `ready_texts` are by process name: a server's text is its URL, a manager's describes its model.
    """
    url = ready_texts[SERVER_NAME]
    descriptions = [text for name, text in ready_texts.items() if name.startswith("manager")]
    replicas = f" x {len(descriptions)} replicas" if len(descriptions) > 1 else ""
    name = config.public_model_name
    return [
        f"Serving {name} at {url}/v1 · {descriptions[0]}{replicas} · ready in {seconds:.1f} s",
        f"Try it:  {_ping_command()} prompt='Hello world' max_tokens=100 chat=True"
        + _ping_options(config, url),
        f"   or:   curl {url}/v1/completions -H 'Content-Type: application/json' "
        f'-d \'{{"model": "{name}", "prompt": "def fib(n):", "max_tokens": 50}}\'',
    ]


def _ping_command() -> str:
    """As this terminal can run it: by name, or by the path of an environment that isn't active."""
    if shutil.which("toka-ping"):
        return "toka-ping"
    installed = Path(sys.executable).parent / "toka-ping"
    if installed.is_relative_to(Path.cwd()):
        return str(installed.relative_to(Path.cwd()))
    return str(installed)


def _ping_options(config: EngineConfig, url: str) -> str:
    is_default = url.endswith(f":{type(config).options()['port'].default}")
    return "" if is_default else f" url={url}"
