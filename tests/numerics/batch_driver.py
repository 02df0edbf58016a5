"""Greedy decoding of many prompts in ragged steps, as a worker would run them.

A step mixes chunks of prompts with decodes; blocks are scattered over the cache.
"""

from pathlib import Path

import numpy as np
import torch

from tokasaurus.model.attention.backend import AttentionBatch, CausalModel
from tokasaurus.model.attention.torch_backend import TorchBackend
from tokasaurus.model.registry import ModelPath, load_model

PAGE_SIZE = 8
_MAX_TOKENS = 100


def load(
    folder: Path,
    model_path: ModelPath = "native",
    *,
    dtype: str = "float32",
    max_model_len: int | None = None,
) -> CausalModel:
    """The checkpoint on the CPU."""
    return load_model(
        folder,
        dtype=dtype,
        device=torch.device("cpu"),
        model_path=model_path,
        load_format="auto",
        max_model_len=max_model_len,
        progress=lambda fraction, text: None,
    )


def prompt_logits(model: CausalModel, ids_T: torch.Tensor) -> torch.Tensor:
    """Logits TV of one whole prompt in one step."""
    num_tokens = len(ids_T)
    num_blocks = -(-num_tokens // PAGE_SIZE)
    backend = _backend(model, num_blocks)
    backend.plan(
        AttentionBatch(
            num_prefill_rows=1,
            query_lens=np.array([num_tokens], np.int32),
            kv_lens=np.array([num_tokens], np.int32),
            block_indptr=np.array([0, num_blocks], np.int32),
            block_ids=np.arange(num_blocks, dtype=np.int32),
            slot_mapping=np.arange(num_tokens),
        )
    )
    with torch.inference_mode():
        return model.logits(model.forward(ids_T, torch.arange(num_tokens), backend))


def _backend(model: CausalModel, num_blocks: int) -> TorchBackend:
    backend = TorchBackend(
        model.attention_layers,
        page_size=PAGE_SIZE,
        dtype=model.dtype,
        device=torch.device("cpu"),
    )
    backend.allocate(num_blocks)
    return backend


class _Sequence:
    def __init__(self, prompt: list[int], max_new_tokens: int) -> None:
        self.tokens = list(prompt)
        self.num_done = 0
        self.num_prompt = len(prompt)
        self.end = len(prompt) + max_new_tokens
        self.logprobs: list[float] = []
        self.blocks = np.empty(0, np.int32)

    @property
    def is_decoding(self) -> bool:
        return len(self.tokens) - self.num_done == 1 and self.num_done >= self.num_prompt

    @property
    def is_finished(self) -> bool:
        return len(self.tokens) == self.end


def generate(
    model: CausalModel, prompts: list[list[int]], max_new_tokens: int, seed: int = 0
) -> tuple[list[list[int]], list[list[float]]]:
    """Greedy tokens and log-probabilities of every prompt."""
    sequences = [_Sequence(prompt, max_new_tokens) for prompt in prompts]
    needed = [-(-s.end // PAGE_SIZE) for s in sequences]
    order = np.random.default_rng(seed).permutation(sum(needed)).astype(np.int32)
    ends = np.cumsum(needed)
    for sequence, end, count in zip(sequences, ends, needed, strict=True):
        sequence.blocks = order[end - count : end]
    backend = _backend(model, sum(needed))
    while any(not s.is_finished for s in sequences):
        _step(model, backend, sequences)
    return [s.tokens[s.num_prompt :] for s in sequences], [s.logprobs for s in sequences]


def _step(model: CausalModel, backend: TorchBackend, sequences: list[_Sequence]) -> None:
    running = [s for s in sequences if not s.is_finished]
    decodes = [s for s in running if s.is_decoding]
    budget = max(7, _MAX_TOKENS - len(decodes))
    chunks = []
    for sequence in running:
        if not sequence.is_decoding and budget > 0:
            size = min(budget, len(sequence.tokens) - sequence.num_done)
            chunks.append((sequence, size))
            budget -= size
    rows = [*chunks, *((s, 1) for s in decodes)]
    spans = [range(s.num_done, s.num_done + size) for s, size in rows]
    blocks = [
        s.blocks[: -(-span.stop // PAGE_SIZE)] for (s, _), span in zip(rows, spans, strict=True)
    ]
    slots = [
        s.blocks[np.array(span) // PAGE_SIZE] * PAGE_SIZE + np.array(span) % PAGE_SIZE
        for (s, _), span in zip(rows, spans, strict=True)
    ]
    batch = AttentionBatch(
        num_prefill_rows=len(chunks),
        query_lens=np.array([size for _, size in rows], np.int32),
        kv_lens=np.array([span.stop for span in spans], np.int32),
        block_indptr=np.cumsum([0, *map(len, blocks)]).astype(np.int32),
        block_ids=np.concatenate(blocks),
        slot_mapping=np.concatenate(slots).astype(np.int64),
    )
    backend.plan(batch)
    ids = [
        t
        for (s, _), span in zip(rows, spans, strict=True)
        for t in s.tokens[span.start : span.stop]
    ]
    positions = [p for span in spans for p in span]
    with torch.inference_mode():
        hidden = model.forward(torch.tensor(ids), torch.tensor(positions), backend)
        last_rows = torch.from_numpy(np.cumsum(batch.query_lens) - 1)
        scores = model.logits(hidden[last_rows]).log_softmax(-1)
    for (sequence, size), row in zip(rows, scores, strict=True):
        sequence.num_done += size
        if sequence.num_done == len(sequence.tokens):
            token = int(row.argmax())
            sequence.tokens.append(token)
            sequence.logprobs.append(float(row[token]))
