"""What a trace consists of: prompts with the true lengths of their outputs.

Token ids are a function of (key, position), so that a later prompt can hold what an earlier one is
going to generate, and nothing has to be stored for it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

VOCAB_SIZE = 2**17 + 1
STOP_TOKEN = 2**17
"""Drawn at the true end of an output, and nowhere else."""

_STEP = np.uint32(0x9E3779B9)
_MIX = np.uint32(0x85EBCA6B)


def token_ids(keys: np.ndarray | np.uint32, positions: np.ndarray) -> np.ndarray:
    """int32: the tokens at `positions` of the texts `keys` (one, or one per position)."""
    mixed = positions.astype(np.uint32)
    mixed *= _STEP
    mixed += keys
    mixed ^= mixed >> 16
    mixed *= _MIX
    mixed >>= 15
    return mixed.view(np.int32)


def text(key: int, start: int, end: int) -> np.ndarray:
    """int32[end - start]: tokens start..end-1 of the text `key`."""
    return token_ids(np.uint32(key), np.arange(start, end, dtype=np.uint32))


@dataclass(slots=True, kw_only=True, eq=False)
class Prompt:
    """A prompt that arrives, with n >= 1 samples to draw."""

    arrival_seconds: float
    prompt_ids: np.ndarray
    """int32[P]"""
    output_lens: np.ndarray
    """int64[n]: output tokens, the stop token included; those above `max_tokens` end by length."""
    output_keys: np.ndarray
    """uint32[n]: the text that each sample continues at position P."""
    max_tokens: int
    priority: int = 0
    predictor_key: str = ""
    is_streamed: bool = False
    """Somebody waits for each token: nothing that runs beside it is leased."""
    follow_up: Callable[[float], "Prompt | None"] | None = field(default=None, repr=False)
    """Called with the time at which the last sample ended: what the same client asks next."""


Trace = Iterator[Prompt]
"""Prompts by rising arrival; those that follow from others' ends are not in it."""


def continued(prompt_ids: np.ndarray, key: int, num_output_tokens: int) -> np.ndarray:
    """int32: the prompt and the output that the text `key` gives it."""
    num_prompt_tokens = prompt_ids.size
    output = text(key, num_prompt_tokens, num_prompt_tokens + num_output_tokens)
    output[-1] = STOP_TOKEN
    return np.concatenate([prompt_ids, output])
