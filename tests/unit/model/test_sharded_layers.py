"""Layers of all ranks together hold each weight once and compute what one with all of it does."""

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints import make_checkpoint
from tests.models import decoder_spec, load
from tests.rank_threads import on_ranks
from tokasaurus.model.config import DecoderSpec, TensorSpec
from tokasaurus.model.decoder import Decoder
from tokasaurus.model.layers.embedding import Embedding, Head
from tokasaurus.model.layers.linear import GateUpLinear, QKVLinear, RowLinear
from tokasaurus.model.layers.loading import LoadableLayer
from tokasaurus.model.layers.sharding import HeadShare, VocabularyShare
from tokasaurus.model.parallel import ParallelContext, RankGroup
from tokasaurus.model.stages import Stage, divide_layers
from tokasaurus.model.weights.checkpoint import Checkpoint
from tokasaurus.model.weights.safetensors_file import SafetensorsFile
from tokasaurus.model.weights.tensors import CheckpointTensor

CPU = torch.device("cpu")
D, H = 12, 4


def tensors(rank: int, size: int, ranks: RankGroup | None = None) -> TensorSpec:
    parallel = ParallelContext(tp=ranks or RankGroup(rank, size))
    return TensorSpec(dtype=torch.float32, device=CPU, parallel=parallel)


def fill(layer: LoadableLayer, folder: Path, **parts: torch.Tensor) -> int:
    """Returns how many bytes were read."""
    path = folder / "x"
    if not path.exists():
        save_file({name: tensor.contiguous() for name, tensor in parts.items()}, path)
    file, num_bytes = SafetensorsFile(path), 0
    for name, tensor in parts.items():
        part = name.removesuffix("_bias")
        source = file.tensor(name)
        layer.load("" if part == "all" else part, "weight" if tensor.dim() == 2 else "bias", source)
        num_bytes += source.num_bytes_copied
    return num_bytes


@pytest.mark.parametrize("form", ["separate", "fused", "grouped"])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "size"), [(6, 2, 2), (8, 2, 4), (6, 1, 3)])
def test_heads_are_divided(
    form: str, num_heads: int, num_kv_heads: int, size: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(count * H, D) for count in (num_heads, num_kv_heads, num_kv_heads))
    parts = {"q": q, "k": k, "v": v}
    if form == "fused":
        parts = {"qkv": torch.cat((q, k, v))}
    elif form == "grouped":
        groups = zip(*(x.chunk(num_kv_heads) for x in (q, k, v)), strict=True)
        parts = {"grouped": torch.cat([torch.cat(group) for group in groups])}
    x = torch.randn(5, D)
    whole = [(x @ weight.T).view(5, -1, H) for weight in (q, k, v)]
    num_bytes = 0
    for rank in range(size):
        layer = QKVLinear(D, num_heads, num_kv_heads, H, tensors(rank, size), bias=False)
        num_bytes += fill(layer, tmp_path, **parts)
        share = HeadShare.of(num_heads, num_kv_heads, tensors(rank, size).parallel)
        heads = (share.query_heads, share.kv_heads, share.kv_heads)
        for actual, all_heads, mine in zip(layer(x), whole, heads, strict=True):
            torch.testing.assert_close(actual, all_heads[:, mine.start : mine.stop])
        for head in range(len(share.query_heads)):  # its KV head is here, where attention looks
            group = head // (layer.num_heads // layer.num_kv_heads)
            wanted = share.query_heads[head] // (num_heads // num_kv_heads)
            assert share.kv_heads[group] == wanted
    copies = max(1, size // num_kv_heads)
    assert num_bytes == 4 * (q.numel() + copies * (k.numel() + v.numel()))


@pytest.mark.parametrize("form", ["separate", "fused"])
@pytest.mark.parametrize("bias", [False, True])
def test_an_mlp_is_divided(form: str, bias: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    size, intermediate = 2, 8
    gate, up, down = torch.randn(8, D), torch.randn(8, D), torch.randn(D, 8)
    x, down_bias = torch.randn(3, D), torch.randn(D)
    expected = (torch.relu(x @ gate.T) * (x @ up.T)) @ down.T
    if bias:
        expected += down_bias
    parts = {"gate": gate, "up": up} if form == "separate" else {"gate_up": torch.cat((gate, up))}
    save_file(parts, tmp_path / "x")
    (tmp_path / "down").mkdir()
    down_parts = {"all": down, **({"all_bias": down_bias} if bias else {})}
    save_file(down_parts, tmp_path / "down" / "x")

    # 8 terms of up to about 40, each right to a few times 2**-24, may cancel
    assert_close = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-5)

    @torch.inference_mode()
    def run(ranks: RankGroup) -> tuple[torch.Tensor, int]:
        spec = tensors(ranks.rank, size, ranks)
        gate_up = GateUpLinear(D, intermediate, spec, bias=False)
        last = RowLinear(intermediate, D, spec, bias=bias)
        num_bytes = fill(gate_up, tmp_path, **parts)
        num_bytes += fill(last, tmp_path / "down", **down_parts)
        gate_half, up_half = gate_up(x).chunk(2, dim=-1)
        plain = last(torch.relu(gate_half) * up_half)
        last.finish_loading(lambda weight, bias: lambda x: torch.nn.functional.linear(x, weight))
        assert_close(last(torch.relu(gate_half) * up_half), plain)
        return plain, num_bytes

    results = on_ranks(size, run)
    for actual, _ in results:
        assert_close(actual, expected)
    whole = gate.numel() + up.numel() + down.numel() + (size * D if bias else 0)
    assert sum(num_bytes for _, num_bytes in results) == 4 * whole


@pytest.mark.parametrize(("size", "vocab_size"), [(2, 200), (3, 130), (4, 100)])
def test_a_vocabulary_is_divided(size: int, vocab_size: int, tmp_path: Path) -> None:
    """Also one that leaves a rank without any token."""
    torch.manual_seed(0)
    weight, hidden = torch.randn(vocab_size, D), torch.randn(4, D)
    ids = torch.arange(vocab_size)
    save_file({"all": weight}, tmp_path / "x")

    @torch.inference_mode()
    def run(ranks: RankGroup) -> tuple[torch.Tensor, torch.Tensor, int]:
        spec = tensors(ranks.rank, size, ranks)
        embedding = Embedding(vocab_size, D, spec)
        num_bytes = fill(embedding, tmp_path, all=weight)
        head = Head(vocab_size, D, spec, embedding)
        return embedding(ids), head.whole(head(hidden)), num_bytes

    results = on_ranks(size, run)
    for vectors, logits, _ in results:
        assert torch.equal(vectors, weight)
        torch.testing.assert_close(logits, hidden @ weight.T)
    assert sum(num_bytes for *_, num_bytes in results) == 4 * weight.numel()


def test_shares_of_a_vocabulary_are_whole_noise_blocks() -> None:
    shares = [VocabularyShare.of(1000, ParallelContext(tp=RankGroup(rank, 3))) for rank in range(3)]
    assert [(share.start, share.num_tokens) for share in shares] == [
        (0, 384),
        (384, 384),
        (768, 232),
    ]
    assert {share.num_rows for share in shares} == {384}


def test_stages_are_balanced_and_none_is_empty() -> None:
    assert divide_layers(32, 4, 0.0) == [8, 8, 8, 8]
    assert divide_layers(16, 2, 4.0) == [10, 6]
    assert divide_layers(30, 4, 2.0) == [8, 8, 8, 6]
    assert divide_layers(3, 3, 50.0) == [1, 1, 1]
    assert divide_layers(5, 1, 9.0) == [5]


def spec_of(folder_tied: bool) -> DecoderSpec:
    return decoder_spec(
        vocab_size=64, hidden_size=8, intermediate_size=16, num_layers=4, num_heads=2,
        num_kv_heads=1, head_dim=4, tie_embeddings=folder_tied,
    )  # fmt: skip


@pytest.mark.parametrize("tied", [False, True])
def test_a_stage_knows_what_is_elsewhere(tied: bool) -> None:
    first, last = (Stage.of(spec_of(tied), ParallelContext(pp_rank=r, pp_size=2)) for r in (0, 1))
    assert [*first.layers, *last.layers] == [0, 1, 2, 3]
    assert first.local_path("embedding") == "embedding"
    assert first.local_path("head") is first.local_path("norm") is None
    assert last.local_path("norm") == "norm"
    assert (last.local_path("embedding") == "embedding") == tied
    start = last.layers.start
    assert last.local_path(f"layers.{start}.attention.qkv") == "layers.0.attention.qkv"
    assert last.local_path(f"layers.{start - 1}.attention.qkv") is None
    assert first.local_path(f"layers.{start}.attention.qkv") is None


@pytest.mark.parametrize(("pp_size", "tp_size"), [(1, 2), (3, 1), (2, 2)])
def test_a_checkpoint_is_read_once_over_all_ranks(
    pp_size: int, tp_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for norms, which every tensor-parallel rank has; and a rank's share of the KV cache is
    that of its layers and heads."""
    folder = make_checkpoint("llama", tmp_path)
    handed_out: list[CheckpointTensor] = []
    original = SafetensorsFile.tensor

    def tensor(self: SafetensorsFile, name: str) -> CheckpointTensor:
        handed_out.append(original(self, name))
        return handed_out[-1]

    monkeypatch.setattr(SafetensorsFile, "tensor", tensor)
    num_kv_heads = 0
    for rank in range(pp_size * tp_size):
        pp_rank, tp_rank = divmod(rank, tp_size)
        parallel = ParallelContext(tp=RankGroup(tp_rank, tp_size), pp_rank=pp_rank, pp_size=pp_size)
        model = load(folder, parallel=parallel)
        assert isinstance(model, Decoder)
        assert [layer.index for layer in model.attention_layers] == list(range(len(model.layers)))
        num_kv_heads += sum(layer.num_kv_heads for layer in model.attention_layers)
    assert num_kv_heads == 3 * 2
    sizes = {t.name: t.num_bytes for t in Checkpoint(folder).tensors()}
    norms = sum(size for name, size in sizes.items() if "norm" in name)
    read = sum(t.num_bytes_copied for t in handed_out)
    assert read == sum(sizes.values()) + (tp_size - 1) * norms
