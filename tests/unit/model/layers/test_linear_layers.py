"""Fused linear layers filled in every way a checkpoint may store them."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from tokasaurus.model.config import TensorSpec
from tokasaurus.model.layers.linear import GateUpLinear, Linear, QKVLinear
from tokasaurus.model.layers.loading import LoadableLayer
from tokasaurus.model.weights.safetensors_file import SafetensorsFile

TENSORS = TensorSpec(dtype=torch.float32, device=torch.device("cpu"))
D, N, K, H = 12, 6, 2, 4


def fill(layer: LoadableLayer, folder: Path, **parts: torch.Tensor) -> None:
    save_file({name: tensor.contiguous() for name, tensor in parts.items()}, folder / "x")
    file = SafetensorsFile(folder / "x")
    for part, tensor in parts.items():
        parameter = "weight" if tensor.dim() == 2 else "bias"
        layer.load(part.removesuffix("_bias"), parameter, file.tensor(part))


def heads(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weight).view(len(x), -1, H)


@pytest.mark.parametrize("form", ["separate", "fused", "grouped"])
def test_qkv(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(count * H, D) for count in (N, K, K))
    layer = QKVLinear(D, N, K, H, TENSORS, bias=False)
    if form == "separate":
        fill(layer, tmp_path, q=q, k=k, v=v)
    elif form == "fused":
        fill(layer, tmp_path, qkv=torch.cat((q, k, v)))
    else:
        groups = [
            torch.cat((a, b, c)) for a, b, c in zip(q.chunk(K), k.chunk(K), v.chunk(K), strict=True)
        ]
        fill(layer, tmp_path, grouped=torch.cat(groups))
    x = torch.randn(5, D)
    for actual, weight in zip(layer(x), (q, k, v), strict=True):
        torch.testing.assert_close(actual, heads(x, weight))


def test_biases_are_filled_by_part(tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = {f"{n}_bias": torch.randn(c * H) for n, c in (("q", N), ("k", K), ("v", K))}
    layer = QKVLinear(D, N, K, H, TENSORS, bias=True)
    fill(layer, tmp_path, **parts)
    assert torch.equal(layer.parameter("bias"), torch.cat(list(parts.values())))


def test_gate_and_up_are_halves(tmp_path: Path) -> None:
    torch.manual_seed(0)
    gate, up = torch.randn(7, D), torch.randn(7, D)
    one, two = (GateUpLinear(D, 7, TENSORS, bias=False) for _ in range(2))
    fill(one, tmp_path, gate=gate, up=up)
    fill(two, tmp_path, gate_up=torch.cat((gate, up)))
    assert torch.equal(one.weight, two.weight)


def test_a_packed_linear_computes_with_its_kernel() -> None:
    torch.manual_seed(0)
    layer = Linear(D, 3, TENSORS, bias=False)
    layer.weight.copy_(torch.randn(3, D))
    x = torch.randn(2, D)
    expected = layer(x)
    layer.finish_loading(lambda weight, bias: lambda x: 2 * F.linear(x, weight, bias))
    torch.testing.assert_close(layer(x), 2 * expected)
