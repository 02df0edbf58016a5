"""Vectors of prompts: what a client may ask for, and how they are scaled and written."""

import asyncio
import base64
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from tokasaurus.errors import InvalidRequestError
from tokasaurus.ipc.messages.to_manager import Pooling
from tokasaurus.server.completion_prompts import split_prompts
from tokasaurus.server.generation import Generation
from tokasaurus.server.request_building import ModelLimits
from tokasaurus.server.sampling_params import shown
from tokasaurus.server.schemas.embeddings import Embedding

EncodingFormat = Literal["float", "base64"]

_NUMBERS_PER_TURN = 2**16
"""Written before others get a turn on the event loop: some ten milliseconds as decimal numbers."""


def split_inputs(value: Any) -> list[str] | list[list[int]]:
    """All texts, or all token ids. Raises InvalidRequestError for anything else."""
    inputs = split_prompts(value, n=1, param="input")
    if "" in inputs:
        raise InvalidRequestError(
            "'input' must not contain empty texts; leave them out.", param="input"
        )
    return inputs


def checked_pooling(value: Any) -> Pooling:
    """Of a caller from Python; "" for None. Raises InvalidRequestError for other words."""
    if value is None:
        return ""
    if value not in ("mean", "last"):
        raise InvalidRequestError(
            f"'pooling' must be 'mean' or 'last', not {shown(value)}.", param="pooling"
        )
    return value


def check_dimensions(dimensions: int | None, limits: ModelLimits) -> None:
    """Raises InvalidRequestError for what is no part of this model's vectors."""
    size = limits.hidden_size
    if dimensions is None or not size:
        return
    if type(dimensions) is not int or not 1 <= dimensions <= size:
        raise InvalidRequestError(
            f"'dimensions' must be between 1 and {size}, which is the hidden size of this model, "
            f"not {shown(dimensions)}.",
            param="dimensions",
        )


def unit_vector(pooled: np.ndarray, dimensions: int | None) -> np.ndarray:
    """float32: the first `dimensions` numbers (None: all), scaled to length 1; zeros stay zeros."""
    kept = pooled[:dimensions].astype(np.float64)
    length = np.linalg.norm(kept)
    return (kept / length if length else kept).astype(np.float32)


async def write_vectors(
    generations: Sequence[Generation], dimensions: int | None, encoding: EncodingFormat
) -> list[msgspec.Raw]:
    """An encoded `Embedding` for each, in order. Vectors are dropped as they are written."""
    written = []
    num_numbers = 0
    for generation in generations:
        assert generation.embedding is not None, "it ended without a vector"
        vector = unit_vector(generation.embedding, dimensions)
        generation.embedding = None
        written.append(msgspec.Raw(msgspec.json.encode(_embedding(generation, vector, encoding))))
        num_numbers += vector.size
        if num_numbers >= _NUMBERS_PER_TURN:
            num_numbers = 0
            await asyncio.sleep(0)
    return written


def _embedding(generation: Generation, vector: np.ndarray, encoding: EncodingFormat) -> Embedding:
    if encoding == "float":
        return Embedding(index=generation.index, embedding=vector.tolist())
    data = np.ascontiguousarray(vector, "<f4").tobytes()
    return Embedding(index=generation.index, embedding=base64.b64encode(data).decode())
