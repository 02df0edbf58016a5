"""How the peer benchmark talks to an engine that runs in a Python of its own.

A line of JSON each way: first the settings and the engine's description, then a workload's prompts
and what came of them. Imports the standard library alone, as peers' environments hold nothing else.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Protocol, TextIO


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an engine is started with."""

    model: str
    """Folder of the Hugging Face checkpoint."""
    converted: str
    """Folder of the checkpoint in the peers' own formats, named ENGINE-DTYPE."""
    dtype: str
    """bf16 or int8."""
    num_threads: int
    options: list[str] = field(default_factory=list)
    """key=value words; what they mean is up to the engine."""

    def converted_path(self, name: str) -> str:
        path = Path(self.converted) / name
        if not path.exists():
            raise SystemExit(f"{path} is missing; docs/performance.md says how to convert to it.")
        return str(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One run of one workload."""

    seconds: float
    ttft_seconds: list[float]
    """Per prompt, from the submission of all of them."""
    output_ids: list[list[int]]
    """Per prompt."""


class Engine(Protocol):
    def describe(self) -> str:
        """Name, version and the number formats in use."""
        ...

    def generate(self, prompts: list[list[int]], num_output_tokens: int) -> Answer:
        """Greedily, EOS ignored, everything submitted at once."""
        ...


def answer_requests(make_engine: Callable[[Settings], Engine]) -> None:
    """Serve the benchmark on stdin and stdout until stdin ends.

    Whatever the engine prints goes to stderr.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(make_engine, sys.stdin, replies)


def serve(make_engine: Callable[[Settings], Engine], requests: TextIO, replies: TextIO) -> None:
    engine = make_engine(Settings(**json.loads(requests.readline())))
    send(replies, {"description": engine.describe()})
    for line in requests:
        send(replies, asdict(engine.generate(**json.loads(line))))


def send(stream: TextIO, message: dict[str, object]) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


def shared_prefix_length(prompts: list[list[int]]) -> int:
    """Of several prompts; each keeps a token of its own. 0 for one prompt."""
    if len(prompts) == 1:
        return 0
    columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def has_bf16_products() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (Linux on x86)."""
    flags = Path("/proc/cpuinfo").read_text().split()
    return "avx512_bf16" in flags or "amx_bf16" in flags
