"""Compares paged execution with transformers' own on a few tokens, before the model is served.

What no probe can see (a position that the model counts by itself, state carried between tokens,
a head that is more than a matrix) shows as a difference here.
"""

from typing import Any

import numpy as np
import torch

from tokasaurus.model.attention.backend import AttentionBatch, CausalModel
from tokasaurus.model.attention.torch_backend import TorchBackend
from tokasaurus.model.config import UnsupportedFeatureError

_PAGE_SIZE = 16
_SEQUENCE_LENS = (7, 5)
_STEPS = ((4, 3), (2, 1), (1, 1))
"""Tokens of each sequence per step: chunks of a prompt, then single tokens."""

_TOLERANCES = {torch.float32: 0.01}
_LOW_PRECISION_TOLERANCE = 0.3
"""Of the logits' standard deviation. A wrong position or a lost state is an error of about 1;
experts that rounding picks differently in bfloat16 reach 0.1."""

_SMALLEST_DEVIATION = 1e-6
"""Logits that are all alike differ by rounding only."""


def reference_logits(model: Any, vocab_size: int) -> list[torch.Tensor]:
    """Each probe sequence through transformers alone, with its eager attention."""
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        return [
            model(input_ids=ids.to(model.device)[None], use_cache=False).logits[0].float()
            for ids in _sequences(vocab_size)
        ]


def check_against(model: CausalModel, references: list[torch.Tensor], device: torch.device) -> None:
    """Raises UnsupportedFeatureError when paged execution gives other logits."""
    actual = torch.cat(_paged_logits(model, device))
    expected = torch.cat(references)
    error = (actual - expected).square().mean().sqrt() / (expected.std() + _SMALLEST_DEVIATION)
    if not error <= _TOLERANCES.get(model.dtype, _LOW_PRECISION_TOLERANCE):
        raise UnsupportedFeatureError(
            f"{model.path}: run in chunks on paged attention, the logits differ from transformers' "
            f"own by {error:.2g} of their deviation, so it can't be served."
        )


def _sequences(vocab_size: int) -> list[torch.Tensor]:
    """Spread over the vocabulary, away from its ends, where special tokens are."""
    return [
        (torch.arange(1, length + 1) * 7919 * (row + 1)) % max(1, vocab_size // 2) + vocab_size // 4
        for row, length in enumerate(_SEQUENCE_LENS)
    ]


def _paged_logits(model: CausalModel, device: torch.device) -> list[torch.Tensor]:
    backend = TorchBackend(
        model.attention_layers, page_size=_PAGE_SIZE, dtype=model.dtype, device=device
    )
    num_rows = len(_SEQUENCE_LENS)
    backend.allocate(num_rows)
    sequences = _sequences(model.vocab_size)
    pieces: list[list[torch.Tensor]] = [[] for _ in sequences]
    done = [0] * num_rows
    for lens in _STEPS:
        spans = [(start, start + count) for start, count in zip(done, lens, strict=True)]
        backend.plan(_batch(spans))
        ids = torch.cat([s[a:b] for s, (a, b) in zip(sequences, spans, strict=True)])
        positions = torch.cat([torch.arange(a, b) for a, b in spans])
        with torch.inference_mode():
            hidden = model.forward(ids.to(device), positions.to(device), backend)
            logits = model.logits(hidden)
        for row, piece in enumerate(logits.split(lens)):
            pieces[row].append(piece)
        done = [stop for _, stop in spans]
    return [torch.cat(row) for row in pieces]


def _batch(spans: list[tuple[int, int]]) -> AttentionBatch:
    """Row r owns block r."""
    slots = [np.arange(a, b) + row * _PAGE_SIZE for row, (a, b) in enumerate(spans)]
    return AttentionBatch(
        num_prefill_rows=len(spans),
        query_lens=np.array([b - a for a, b in spans], np.int32),
        kv_lens=np.array([b for _, b in spans], np.int32),
        block_indptr=np.arange(len(spans) + 1, dtype=np.int32),
        block_ids=np.arange(len(spans), dtype=np.int32),
        slot_mapping=np.concatenate(slots).astype(np.int64),
    )
