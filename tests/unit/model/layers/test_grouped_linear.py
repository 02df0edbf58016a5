"""Grouped linear layers: every way to compute them, and how they are filled."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tokasaurus.errors import ModelError
from tokasaurus.model.config import TensorSpec
from tokasaurus.model.layers.grouped_linear import (
    GroupedLinear,
    grouped_linear,
    product_by_group,
    product_by_mask,
    product_on_device,
)
from tokasaurus.model.weights.safetensors_file import SafetensorsFile

TENSORS = TensorSpec(dtype=torch.float32, device=torch.device("cpu"))
Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def in_float64(x: torch.Tensor, weight: torch.Tensor, counts: list[int]) -> torch.Tensor:
    pieces = x[: sum(counts)].double().split(counts)
    return torch.cat([piece @ w.double().T for piece, w in zip(pieces, weight, strict=True)])


def ends_of(counts: list[int]) -> torch.Tensor:
    return torch.tensor(counts).cumsum(0).int()


@pytest.mark.parametrize(
    "product", [product_on_device, product_by_group, product_by_mask, grouped_linear]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=25)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    num_others=st.integers(0, 5),
    seed=st.integers(0, 2**31),
)
def test_products_equal_float64(
    product: Product, dtype: torch.dtype, counts: list[int], num_others: int, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(counts) + num_others, 16, generator=rng).to(dtype)
    weight = torch.randn(len(counts), 24, 16, generator=rng).to(dtype)
    y = product(x, weight, ends_of(counts))
    assert (y.shape, y.dtype) == ((len(x), 24), dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    torch.testing.assert_close(
        y[: sum(counts)].double(), in_float64(x, weight, counts), atol=tolerance, rtol=tolerance
    )


def test_one_operator_for_compiled_code() -> None:
    arguments = (torch.randn(5, 8), torch.randn(3, 4, 8), ends_of([2, 0, 3]))
    torch.library.opcheck(grouped_linear, arguments)


def fill(layer: GroupedLinear, folder: Path, **parts: torch.Tensor) -> None:
    names = {name.replace("_", "."): tensor.contiguous() for name, tensor in parts.items()}
    save_file(names, folder / "x")
    file = SafetensorsFile(folder / "x")
    for name in names:
        layer.load(name.removeprefix("part."), "weight", file.tensor(name))


@pytest.mark.parametrize("held", [range(3), range(1, 3), range(1)])
@pytest.mark.parametrize("form", ["halves", "groups", "all"])
def test_a_rank_takes_its_groups(held: range, form: str, tmp_path: Path) -> None:
    weight = torch.randn(3, 6, 8)
    layer = GroupedLinear(held, 3, 8, 6, TENSORS)
    if form == "all":
        fill(layer, tmp_path, all=weight)
    elif form == "groups":
        fill(layer, tmp_path, **{f"part_{i}": weight[i] for i in range(3)})
    else:
        fill(layer, tmp_path, **{f"part_{i}_gate": weight[i, :3] for i in range(3)})
        fill(layer, tmp_path, **{f"part_{i}_up": weight[i, 3:] for i in range(3)})
    assert torch.equal(layer.weight, weight[held.start : held.stop])


@pytest.mark.parametrize("name", ["all", "part_1", "part_1_gate"])
def test_a_tensor_of_another_shape_is_refused(name: str, tmp_path: Path) -> None:
    layer = GroupedLinear(range(1, 3), 3, 8, 6, TENSORS)
    with pytest.raises(ModelError, match="do not match"):
        fill(layer, tmp_path, **{name: torch.randn(2, 6, 8)})


def test_a_packed_kernel_replaces_the_weight() -> None:
    layer = GroupedLinear(range(3), 3, 8, 6, TENSORS)
    layer.weight.normal_()
    x, ends = torch.randn(5, 8), ends_of([1, 0, 4])
    plain = layer(x, ends)
    layer.finish_loading(lambda weight: lambda x, ends: -product_by_group(x, weight, ends))
    assert torch.equal(layer(x, ends), -plain)
