"""Graphs of decode steps, with a stand-in that runs again what it was given to capture."""

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import torch

from tests.models import decoder_spec
from tests.unit.model.attention import flashinfer_double
from tokasaurus.ipc.messages.to_worker import HydragenGroup
from tokasaurus.model.attention import flashinfer_backend
from tokasaurus.model.attention.backend import AttentionBatch
from tokasaurus.model.attention.flashinfer_backend import FlashInferBackend
from tokasaurus.model.config import TensorSpec
from tokasaurus.model.decoder import Decoder
from tokasaurus.model.parallel import ALONE, ParallelContext, RankGroup
from tokasaurus.model.sampling.dense_draw import draw_densely
from tokasaurus.model.sampling.sampler import SamplingBatch, sample
from tokasaurus.worker.cuda_graphs import graph_sizes, padded_decodes
from tokasaurus.worker.forward_pass import ForwardOptions, ForwardPass

CPU = torch.device("cpu")
PAGE_SIZE = 4
NUM_BLOCKS = 40


class ReplayingCapturer:
    """Runs what it captured again, and writes its output to the same place."""

    def __init__(self) -> None:
        self.num_captures = 0
        self.num_replays = 0

    def capture(self, run: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        self.num_captures += 1
        output = run()

        def replay() -> None:
            self.num_replays += 1
            output.copy_(run())

        return replay, output


def assert_about_equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Graphs have rows of padding, with which products may round otherwise."""
    torch.testing.assert_close(actual, expected, atol=2e-2, rtol=2e-2)


def decodes(kv_lens: list[int], groups: tuple[HydragenGroup, ...] = ()) -> AttentionBatch:
    """Row i has the blocks from 4 i on."""
    lens = np.array(kv_lens, np.int32)
    counts = -(-lens // PAGE_SIZE)
    tables = [np.arange(4 * i, 4 * i + n, dtype=np.int32) for i, n in enumerate(counts)]
    last = np.array([table[-1] for table in tables], np.int64)
    return AttentionBatch(
        num_prefill_rows=0,
        query_lens=np.ones(len(lens), np.int32),
        kv_lens=lens,
        block_indptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        block_ids=np.concatenate(tables),
        slot_mapping=last * PAGE_SIZE + (lens - 1) % PAGE_SIZE,
        hydragen_groups=list(groups),
    )


def make_decoder(parallel: ParallelContext = ALONE) -> Decoder:
    torch.manual_seed(0)
    spec = decoder_spec(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=40,
        num_heads=2,
        num_kv_heads=1,
        head_dim=64,
        sliding_windows=(None, 6),
    )
    tensors = TensorSpec(dtype=torch.bfloat16, device=CPU, parallel=parallel)
    decoder = Decoder(spec, "test", 64, tensors)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return decoder


@pytest.fixture
def decoder() -> Decoder:
    return make_decoder()


@pytest.fixture(autouse=True)
def flashinfer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", flashinfer_double)
    monkeypatch.setattr(flashinfer_double, "__spec__", ModuleSpec("flashinfer", None))
    monkeypatch.setattr(flashinfer_backend, "_WORKSPACE_BYTES", 64)


@pytest.fixture
def passes(decoder: Decoder) -> tuple[ForwardPass, ForwardPass, ReplayingCapturer]:
    return make_passes(decoder)


def make_passes(decoder: Decoder) -> tuple[ForwardPass, ForwardPass, ReplayingCapturer]:
    """One without graphs and one with, each with its own cache."""
    capturer = ReplayingCapturer()
    made = []
    for use_cudagraphs in (False, True):
        backend = FlashInferBackend(
            decoder.attention_layers, page_size=PAGE_SIZE, dtype=torch.bfloat16, device=CPU
        )
        backend.allocate(NUM_BLOCKS)
        options = ForwardOptions(
            use_cudagraphs=use_cudagraphs, cudagraph_max_size=8, cudagraph_step=4
        )
        forward = ForwardPass(decoder, backend, CPU, options, page_size=PAGE_SIZE, max_seqs=10)
        forward.capture_graphs(lambda _fraction, _text: None, capturer, draw_densely)
        made.append(forward)
    return made[0], made[1], capturer


def test_sizes() -> None:
    assert graph_sizes(256, 16, 1024)[:2] == [256, 240]
    assert graph_sizes(256, 16, 1024)[-5:] == [16, 8, 4, 2, 1]
    assert graph_sizes(20, 16, 1024) == [20, 16, 8, 4, 2, 1]
    assert graph_sizes(256, 16, 6) == [6, 4, 2, 1]
    assert graph_sizes(256, 2, 5) == [5, 4, 2, 1]
    assert graph_sizes(1, 16, 10) == [1]


def test_padding() -> None:
    padded = padded_decodes(decodes([5, 3]), 4, PAGE_SIZE, 39)
    assert padded.kv_lens.tolist() == [5, 3, 1, 1]
    assert padded.query_lens.tolist() == [1, 1, 1, 1]
    assert padded.block_indptr.tolist() == [0, 2, 3, 4, 5]
    assert padded.block_ids.tolist() == [0, 1, 4, 39, 39]
    assert padded.slot_mapping.tolist() == [4, 18, 156, 156]
    whole = decodes([5, 3])
    assert padded_decodes(whole, 2, PAGE_SIZE, 39) is whole


@torch.inference_mode()
def test_replays_equal_plain_runs(
    passes: tuple[ForwardPass, ForwardPass, ReplayingCapturer],
) -> None:
    plain, graphed, capturer = passes
    assert capturer.num_captures == 2 * 4  # of hidden states and of draws
    assert graphed.path.endswith("CUDA graphs")
    assert not plain.path.endswith("CUDA graphs")
    random = np.random.default_rng(0)
    for step, num_rows in enumerate((5, 5, 8, 1, 3, 7)):
        batch = decodes([step + 1] * num_rows)
        ids = torch.from_numpy(random.integers(0, 50, num_rows))
        positions = np.full(num_rows, step, np.int64)
        launched: list[bool] = []
        expected = plain.run(ids, positions, batch)
        hidden = graphed.run(ids, positions, batch, lambda seen=launched: seen.append(True))
        assert_about_equal(hidden, expected)
        assert capturer.num_replays == step + 1
        assert launched == [True]


@torch.inference_mode()
def test_stages_of_a_pipeline_have_graphs_of_their_own() -> None:
    """What one hands on is not overwritten; the last stage draws."""
    first, last = (make_passes(make_decoder(ParallelContext(pp_rank=r, pp_size=2))) for r in (0, 1))
    assert (first[2].num_captures, last[2].num_captures) == (4, 8)
    handed_on = []
    for step, num_rows in enumerate((5, 8, 5)):
        batch, positions = decodes([step + 1] * num_rows), np.full(num_rows, step, np.int64)
        inputs = torch.arange(num_rows) + step
        hidden = first[0].run(inputs, positions, batch)
        expected = last[0].run(hidden, positions, batch)
        handed_on.append((first[1].run(inputs, positions, batch), hidden))
        assert_about_equal(last[1].run(handed_on[-1][0], positions, batch), expected)
        assert first[1].draw(sampling(num_rows)) is None
        assert last[1].draw(sampling(num_rows)) is not None
    for actual, hidden in handed_on:
        assert_about_equal(actual, hidden)
    assert first[2].num_replays == 3


@torch.inference_mode()
def test_shares_of_a_vocabulary_are_drawn_from_without_graphs() -> None:
    decoder = make_decoder(ParallelContext(tp=RankGroup(0, 2)))
    decoder.parallel = ParallelContext(tp=RankGroup(0, 2))
    for module in decoder.modules():  # sums of one rank are as good as any
        if hasattr(module, "_parallel"):
            module._parallel = ALONE
    _, graphed, capturer = make_passes(decoder)
    assert capturer.num_captures == 4
    graphed.run(torch.arange(2), np.zeros(2, np.int64), decodes([1, 1]))
    assert graphed.draw(sampling(2)) is None


@torch.inference_mode()
def test_steps_that_no_graph_can_run(
    passes: tuple[ForwardPass, ForwardPass, ReplayingCapturer],
) -> None:
    plain, graphed, capturer = passes
    prefill = decodes([1])
    prefill.num_prefill_rows = 1
    shared = decodes([5, 5], (HydragenGroup(0, 2, 1),))
    shared.block_ids[2] = shared.block_ids[0]
    for batch in (prefill, shared, decodes([1] * 9)):
        num_rows = batch.num_rows
        ids, positions = torch.arange(num_rows), np.zeros(num_rows, np.int64)
        expected = plain.run(ids, positions, batch)
        assert_about_equal(graphed.run(ids, positions, batch), expected)
    assert capturer.num_replays == 0


def sampling(num_rows: int, **changes: object) -> SamplingBatch:
    arguments = {
        "temperature": np.linspace(0, 1.5, num_rows, dtype=np.float32),
        "top_k": np.zeros(num_rows, np.int32),
        "top_p": np.ones(num_rows, np.float32),
        "min_p": np.linspace(0, 0.2, num_rows, dtype=np.float32),
        "seeds": np.arange(num_rows),
        "positions": np.arange(num_rows),
        "num_top_logprobs": np.full(num_rows, -1, np.int32),
        "banned_rows": np.empty(0, np.int64),
        "banned_ids": np.empty(0, np.int64),
    }
    return SamplingBatch(**{**arguments, **changes})  # type: ignore[arg-type]


@torch.inference_mode()
def test_draws_of_graphs_equal_the_sampler(
    decoder: Decoder, passes: tuple[ForwardPass, ForwardPass, ReplayingCapturer]
) -> None:
    plain, graphed, _ = passes
    for num_rows in (6, 1, 8, 3):
        ids, positions = torch.arange(num_rows), np.zeros(num_rows, np.int64)
        hidden = graphed.run(ids, positions, decodes([1] * num_rows))
        for seed in range(20):
            batch = sampling(num_rows, seeds=np.arange(num_rows) + 100 * seed)
            drawn = graphed.draw(batch)
            assert drawn is not None
            assert torch.equal(drawn, sample(decoder.logits(hidden), batch).token_ids)
        plain.run(ids, positions, decodes([1] * num_rows))
        assert plain.draw(sampling(num_rows)) is None


@torch.inference_mode()
def test_draws_that_no_graph_makes(
    passes: tuple[ForwardPass, ForwardPass, ReplayingCapturer],
) -> None:
    _, graphed, _ = passes
    ids, positions = torch.arange(2), np.zeros(2, np.int64)
    graphed.run(ids, positions, decodes([1, 1]))
    ones = np.ones(2)
    refused = [
        {"top_k": np.array([0, 5], np.int32)},
        {"top_p": np.array([1, 0.9], np.float32)},
        {"num_top_logprobs": np.array([-1, 0], np.int32)},
        {"banned_rows": np.array([1]), "banned_ids": np.array([7])},
    ]
    for changes in refused:
        assert graphed.draw(sampling(2, **changes)) is None
    accepted = [
        {"top_k": np.array([3, 1], np.int32)},
        {"top_k": np.array([1, 50], np.int32)},
        {"temperature": 0 * ones, "top_p": 0.5 * ones},
    ]
    for changes in accepted:
        assert graphed.draw(sampling(2, **changes)) is not None
    graphed.run(torch.arange(9), np.zeros(9, np.int64), decodes([1] * 9))
    assert graphed.draw(sampling(9)) is None
