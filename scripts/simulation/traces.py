"""Finds the trace that a command line names: a generator with parameters, or a JSONL file."""

import inspect
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from simulation.generators import GENERATORS
from simulation.workload import Prompt, Trace, text


class TraceError(Exception):
    """The trace can't be replayed, for the reason given."""


def find_trace(name: str, words: list[str]) -> Callable[[], Trace]:
    """What makes the trace anew for every replay; `words` are a generator's key=value parameters.

    Raises TraceError.
    """
    generator = GENERATORS.get(name)
    if generator is not None:
        parameters = parse_parameters(generator, words)
        return lambda: generator(**parameters)
    path = Path(name)
    if not path.is_file():
        raise TraceError(f"{name} is neither a file nor one of {', '.join(GENERATORS)}")
    if words:
        raise TraceError(f"{name} is a file, which takes no parameters: {' '.join(words)}")
    return lambda: iter(read_jsonl(path))


def parse_parameters(generator: Callable[..., Trace], words: list[str]) -> dict[str, int | float]:
    """Raises TraceError for a word that is not one of the generator's parameters."""
    defaults = {name: p.default for name, p in inspect.signature(generator).parameters.items()}
    parameters: dict[str, int | float] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key not in defaults:
            raise TraceError(f"{word}: say key=value with a key of {', '.join(defaults)}")
        try:
            parameters[key] = type(defaults[key])(value)
        except ValueError:
            kind = "a whole number" if isinstance(defaults[key], int) else "a number"
            raise TraceError(f"{word}: {key} must be {kind}") from None
    return parameters


def read_jsonl(path: Path) -> list[Prompt]:
    """One prompt per line, by arrival.

    {"arrival_seconds": 0.5, "prompt_tokens": 300 or "prompt_ids": [..], "output_tokens": 80 or
    [80, 95, ..] (one per sample), "max_tokens": 512}, and where wanted "prefix": "name",
    "prefix_tokens": 200 (prompts that name the same prefix begin with the same tokens),
    "priority": 0, "predictor_key": "batch", "stream": true. Raises TraceError.
    """
    prompts = []
    with path.open() as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                prompts.append(_prompt_from(json.loads(line), number))
            except (KeyError, TypeError, ValueError) as error:
                raise TraceError(f"{path}, line {number}: {error!r}") from error
    prompts.sort(key=lambda prompt: prompt.arrival_seconds)
    return prompts


def _prompt_from(entry: dict, number: int) -> Prompt:
    output_lens = np.atleast_1d(np.asarray(entry["output_tokens"], np.int64))
    rng = np.random.default_rng(number)
    if "prompt_ids" in entry:
        prompt_ids = np.asarray(entry["prompt_ids"], np.int32)
    else:
        prompt_ids = text(int(rng.integers(2**32)), 0, int(entry["prompt_tokens"]))
    if "prefix" in entry:
        key = zlib.crc32(str(entry["prefix"]).encode())
        prompt_ids[: entry["prefix_tokens"]] = text(key, 0, entry["prefix_tokens"])
    if not prompt_ids.size or not output_lens.size or output_lens.min() < 1:
        raise ValueError("a prompt and every output need at least one token")
    return Prompt(
        arrival_seconds=float(entry.get("arrival_seconds", 0.0)),
        prompt_ids=prompt_ids,
        output_lens=output_lens,
        output_keys=rng.integers(2**32, size=output_lens.size, dtype=np.uint32),
        max_tokens=int(entry["max_tokens"]),
        priority=int(entry.get("priority", 0)),
        predictor_key=str(entry.get("predictor_key", "")),
        is_streamed=bool(entry.get("stream", False)),
    )
