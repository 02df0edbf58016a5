"""A decode step in one call gives the bits of the layers, the head and the draw called one by one.

How attention is split follows from the number of threads, so long contexts are held to the other
path with as many threads; short ones, whose attention is not split, to any number of them.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.kernel_flavours import FLAVOURS
from tests.unit.model.kernels.small_decoder import FUSED, PAGE_SIZE, backends, make_decoder
from tokasaurus.ipc.messages.to_worker import HydragenGroup
from tokasaurus.model.attention.backend import AttentionBatch
from tokasaurus.model.kernels.decode_step import DecodeStep, SlotColumns
from tokasaurus.model.kernels.fused_decoder import FusedDecoder
from tokasaurus.model.kernels.install import with_cpu_kernels
from tokasaurus.model.kernels.loader import native_flavour
from tokasaurus.model.quantization.scheme import quantization_scheme

THREADS = (1, 2, 3, 5)
LONG, SHORT = (601, 9, 330, 64), (33, 9, 20, 48)
"""Lengths of contexts: of several attention items and merges, or of one item per head."""
MAX_MODEL_LEN = 640
NUM_PASSES = 3
MODELS = (
    ("plain", "none"),
    ("tied", "int8"),
    ("head norms", "int4_weight_only"),
    ("window", "none"),
)
ASKING_FOR_FIVE = """
import sys, torch
from tests.unit.model.kernels.test_decode_step import LONG, Contexts, one_call
torch.set_num_threads(5)
for num_rows in (1, 3):
    print(one_call(Contexts("tied", "int8", sys.argv[1], LONG[:num_rows])).digest)
"""


@pytest.fixture(autouse=True)
def _same_threads_afterwards() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@dataclass(slots=True, frozen=True)
class Outcome:
    tokens: list[list[int]]
    """Of each pass."""
    digest: str
    """Of all bits of the KV cache."""


class Contexts:
    """A model over a cache that holds contexts of these lengths, in blocks in no order."""

    def __init__(
        self, features: str, quantization: str, flavour: str, lengths: tuple[int, ...]
    ) -> None:
        decoder = make_decoder(torch.bfloat16, MAX_MODEL_LEN, **FUSED[features])
        self.backend = backends(decoder, flavour, torch.bfloat16)[1]
        model = with_cpu_kernels(decoder, self.backend, quantization_scheme(quantization, 32))
        assert isinstance(model, FusedDecoder)
        self.model = model
        num_blocks = (max(lengths) + NUM_PASSES) // PAGE_SIZE + 1
        blocks = np.random.default_rng(0).permutation(num_blocks * len(lengths)).astype(np.int32)
        self.tables = blocks.reshape(len(lengths), num_blocks)
        self.backend.allocate(blocks.size)
        self.lengths = np.array(lengths)
        self.groups = np.empty((0, 3), np.int32)

    def share(self, num_rows: int, num_blocks: int) -> None:
        """From now on the first rows have their first blocks in common."""
        self.tables[:num_rows, :num_blocks] = self.tables[0, :num_blocks]
        self.groups = np.array([[0, num_rows, num_blocks]], np.int32)

    def columns(self) -> SlotColumns:
        """Slots that draw the likeliest tokens."""
        n = len(self.lengths)
        return SlotColumns(
            block_tables=self.tables,
            num_blocks=np.full(n, self.tables.shape[1], np.int32),
            kv_lens=self.lengths.copy(),
            last_tokens=np.arange(n),
            temperature=np.zeros(n, np.float32),
            top_p=np.ones(n, np.float32),
            min_p=np.zeros(n, np.float32),
            top_k=np.zeros(n, np.int32),
            seeds=np.zeros(n, np.int64),
        )

    def fill(self) -> None:
        """With the same contexts every time."""
        rng = torch.Generator().manual_seed(1)
        for cache in self.backend.caches():
            cache.copy_(torch.randn(cache.shape, generator=rng))

    def decode(self, passes: Callable[[], list[list[int]]]) -> Outcome:
        self.fill()
        tokens = passes()
        digest = hashlib.sha256()
        for cache in self.backend.caches():
            digest.update(cache.view(torch.int16).numpy())
        return Outcome(tokens, digest.hexdigest())


def one_by_one(step: DecodeStep) -> list[list[int]]:
    """What single calls draw."""
    return [step.run()[0].tolist() for _ in range(NUM_PASSES)]


def one_call(contexts: Contexts, max_logits_rows: int = 8) -> Outcome:
    step = DecodeStep(contexts.model, contexts.backend, max_logits_rows)
    step.bind(contexts.columns())
    step.set_rows(np.arange(len(contexts.lengths)), contexts.groups)
    return contexts.decode(lambda: one_by_one(step))


@torch.inference_mode()
def call_by_call(contexts: Contexts) -> Outcome:
    lengths, n = contexts.lengths.copy(), len(contexts.lengths)
    ids = torch.arange(n)

    def one_pass() -> list[int]:
        positions = lengths.copy()
        lengths[:] += 1
        num_blocks = positions // PAGE_SIZE + 1
        blocks = contexts.tables[np.arange(n), positions // PAGE_SIZE].astype(np.int64)
        rows = zip(contexts.tables, num_blocks, strict=True)
        contexts.backend.plan(
            AttentionBatch(
                num_prefill_rows=0,
                query_lens=np.ones(n, np.int32),
                kv_lens=lengths.astype(np.int32),
                block_indptr=np.concatenate([[0], num_blocks.cumsum()]).astype(np.int32),
                block_ids=np.concatenate([table[:count] for table, count in rows]),
                slot_mapping=blocks * PAGE_SIZE + positions % PAGE_SIZE,
                hydragen_groups=[HydragenGroup(*group) for group in contexts.groups.tolist()],
            )
        )
        hidden = contexts.model.forward(ids, torch.from_numpy(positions), contexts.backend)
        ids.copy_(contexts.model.logits(hidden).argmax(1))
        return ids.tolist()

    return contexts.decode(lambda: [one_pass() for _ in range(NUM_PASSES)])


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(("features", "quantization"), MODELS)
@pytest.mark.parametrize("num_rows", [1, 3, 4])
def test_long_contexts_give_the_bits_of_the_other_path(
    features: str, quantization: str, num_rows: int, flavour: str
) -> None:
    """Logits of four rows are made in two parts."""
    contexts = Contexts(features, quantization, flavour, LONG[:num_rows])
    for num_threads in THREADS:
        torch.set_num_threads(num_threads)
        assert one_call(contexts, max_logits_rows=3) == call_by_call(contexts)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(("features", "quantization"), MODELS)
@pytest.mark.parametrize("num_rows", [1, 3])
def test_the_number_of_threads_changes_no_bit_of_short_contexts(
    features: str, quantization: str, num_rows: int, flavour: str
) -> None:
    contexts = Contexts(features, quantization, flavour, SHORT[:num_rows])
    outcomes = []
    for num_threads in THREADS:
        torch.set_num_threads(num_threads)
        outcomes.append(one_call(contexts))
    assert outcomes == outcomes[:1] * len(THREADS)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("features", ["plain", "window"])
@pytest.mark.parametrize("lengths", [(33, 16, 20), (330, 200, 601)])
def test_rows_that_share_blocks_give_the_bits_of_the_other_path(
    lengths: tuple[int, ...], features: str, flavour: str
) -> None:
    """The second of the short rows has nothing of its own but its new token."""
    contexts = Contexts(features, "none", flavour, lengths)
    contexts.share(2, 16 // PAGE_SIZE)
    for num_threads in THREADS:
        torch.set_num_threads(num_threads)
        assert one_call(contexts) == call_by_call(contexts)


def test_fewer_threads_than_asked_for_give_the_same() -> None:
    """OpenMP may start fewer; work is shared among those that there are."""
    flavour = native_flavour()
    torch.set_num_threads(5)
    expected = [one_call(Contexts("tied", "int8", flavour, LONG[:n])).digest for n in (1, 3)]
    limited = subprocess.run(
        [sys.executable, "-c", ASKING_FOR_FIVE, flavour],
        env=os.environ | {"OMP_THREAD_LIMIT": "2"},
        cwd=Path(__file__).parents[4],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert limited.stdout.split() == expected


@pytest.mark.parametrize("num_threads", THREADS)
@pytest.mark.parametrize("max_logits_rows", [2, 8])
def test_passes_in_one_call_draw_what_single_ones_do(
    num_threads: int, max_logits_rows: int
) -> None:
    """Rows that take their best token and rows that draw, with cuts and without."""
    contexts = Contexts("plain", "none", native_flavour(), (33, 9, 20, 48, 11))

    def step() -> DecodeStep:
        columns = contexts.columns()
        columns.temperature[1:] = (0.7, 1.3, 2.0, 1.0)
        columns.top_k[1] = 5
        columns.top_p[2] = 0.8
        columns.min_p[3] = 0.05
        result = DecodeStep(contexts.model, contexts.backend, max_logits_rows)
        result.bind(columns)
        result.set_rows(np.arange(5), np.empty((0, 3), np.int32))
        return result

    torch.set_num_threads(1)
    single, together = step(), step()
    expected = contexts.decode(lambda: one_by_one(single))
    torch.set_num_threads(num_threads)
    assert contexts.decode(lambda: together.run(NUM_PASSES).tolist()) == expected


def test_where_passes_end() -> None:
    """After a stop token, when something has come, and when time is up."""
    contexts = Contexts("plain", "none", native_flavour(), (33, 9))
    readable, writable = os.pipe()

    def run(stop_tokens: list[int], descriptor: int, *most: float) -> list[list[int]]:
        step = DecodeStep(contexts.model, contexts.backend, 8)
        columns = contexts.columns()
        step.bind(columns)
        step.set_rows(np.arange(2), np.empty((0, 3), np.int32))
        step.pause_at(np.array(stop_tokens, np.int32), descriptor, *most)
        contexts.fill()
        drawn = step.run(NUM_PASSES).tolist()
        assert columns.kv_lens.tolist() == [33 + len(drawn), 9 + len(drawn)]
        assert columns.last_tokens.tolist() == drawn[-1]
        return drawn

    everything = run([], readable)
    assert len(everything) == NUM_PASSES
    assert run([], readable, 3600.0) == everything
    assert run([], readable, 0.0) == everything[:1]
    unseen = next(i for i in range(1000) if all(i not in row for row in everything))
    stop = everything[1][1]
    end = next(i for i, row in enumerate(everything) if stop in row) + 1
    assert run(sorted([stop, unseen]), -1) == everything[:end]
    os.write(writable, b"x")
    assert run([unseen], readable) == everything[:1]
    os.close(readable)
    os.close(writable)


@pytest.mark.parametrize("name", ["block_tables", "kv_lens", "temperature", "top_k"])
def test_columns_of_another_type_are_refused(name: str) -> None:
    contexts = Contexts("plain", "none", native_flavour(), (20,))
    columns = contexts.columns()
    setattr(columns, name, getattr(columns, name).astype(np.float64))
    with pytest.raises(AssertionError, match=f"{name} must be"):
        DecodeStep(contexts.model, contexts.backend, 8).bind(columns)


def test_arrays_of_another_type_are_refused() -> None:
    contexts = Contexts("plain", "none", native_flavour(), (20,))
    step = DecodeStep(contexts.model, contexts.backend, 8)
    no_groups = np.empty((0, 3), np.int32)
    with pytest.raises(AssertionError, match="slots must be int64"):
        step.set_rows(np.zeros(1, np.int32), no_groups)
    with pytest.raises(AssertionError, match="groups must be int32"):
        step.set_rows(np.zeros(1, np.int64), no_groups.astype(np.int64))
    with pytest.raises(AssertionError, match="slots must be contiguous"):
        step.set_rows(np.zeros(4, np.int64)[::2], no_groups)
    with pytest.raises(AssertionError, match="stop_tokens must be int32"):
        step.pause_at(np.arange(3), -1)


@pytest.mark.parametrize("lengths", [(20, 24), (20, MAX_MODEL_LEN)])
def test_a_row_without_room_changes_nothing(lengths: tuple[int, ...]) -> None:
    """Neither it, nor the rows before it; room ends with the slot's blocks or with the model."""
    contexts = Contexts("plain", "none", native_flavour(), lengths)
    columns = contexts.columns()
    if lengths[1] < MAX_MODEL_LEN:
        columns.num_blocks[1] = 24 // PAGE_SIZE
    step = DecodeStep(contexts.model, contexts.backend, max_logits_rows=8)
    step.bind(columns)
    step.set_rows(np.arange(2), np.empty((0, 3), np.int32))
    with pytest.raises(AssertionError, match="over the end"):
        step.run()
    assert columns.kv_lens.tolist() == list(lengths)
    assert columns.last_tokens.tolist() == [0, 1]
