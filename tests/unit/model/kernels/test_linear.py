"""Packed linear layers equal a float64 product, in every build flavour."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernel_flavours import FLAVOURS, kernels_of
from tokasaurus.model.kernels.linear import PackedGroupedLinear, PackedLinear
from tokasaurus.model.kernels.loader import Kernels

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 8e-3}


@pytest.fixture(params=FLAVOURS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return kernels_of(request.param)


def assert_near(y: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(y.double(), expected, atol=tolerance, rtol=tolerance)


@settings(max_examples=60)
@given(
    rows=st.integers(0, 40) | st.sampled_from([95, 130, 300]),
    in_features=st.integers(1, 80) | st.sampled_from([255, 256, 257, 320, 321, 520, 1100]),
    out_features=st.integers(1, 140),
    gated=st.booleans(),
    has_bias=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 2**31),
)
def test_equals_float64(
    kernels: Kernels,
    rows: int,
    in_features: int,
    out_features: int,
    gated: bool,
    has_bias: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    rng = torch.Generator().manual_seed(seed)
    num_weight_rows = 2 * out_features if gated else out_features
    weight = torch.randn(num_weight_rows, in_features, generator=rng) / in_features**0.5
    weight = weight.to(dtype)
    bias = torch.randn(num_weight_rows, generator=rng).to(dtype) if has_bias else None
    x = torch.randn(rows, in_features, generator=rng).to(dtype)
    y = PackedLinear(kernels, weight, bias, gated=gated)(x)
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    if gated:
        gate, up = expected.chunk(2, dim=-1)
        expected = F.silu(gate) * up
    assert y.dtype == dtype
    assert_near(y, expected, dtype)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 3),
    in_features=st.integers(1, 300),
    out_features=st.integers(1, 1000),
    gated=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 2**31),
)
def test_few_rows_equal_float64(
    kernels: Kernels,
    rows: int,
    in_features: int,
    out_features: int,
    gated: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    """Of weights wide enough for streams of several panels; within what float32 sums may err."""
    rng = torch.Generator().manual_seed(seed)
    num_weight_rows = 2 * out_features if gated else out_features
    weight = torch.randn(num_weight_rows, in_features, generator=rng).to(dtype)
    x = torch.randn(rows, in_features, generator=rng).to(dtype)
    y = PackedLinear(kernels, weight, None, gated=gated, float_output=True)(x)
    expected = x.double() @ weight.double().T
    allowed = in_features * 2**-23 * (x.double().abs() @ weight.double().abs().T)
    if gated:
        gate, up = expected.chunk(2, dim=-1)
        of_gate, of_up = allowed.chunk(2, dim=-1)
        # The slope of silu is at most 1.1; its exponential is good to some units of the last place.
        expected = F.silu(gate) * up
        allowed = 1.1 * of_gate * (up.abs() + of_up) + F.silu(gate).abs() * of_up
        allowed = allowed + 2**-20 * (expected.abs() + allowed)
    assert ((y.double() - expected).abs() <= allowed).all()


@settings(max_examples=30)
@given(
    counts=st.lists(st.integers(0, 6) | st.just(70), min_size=1, max_size=6),
    num_others=st.integers(0, 3),
    in_features=st.integers(1, 80) | st.just(300),
    out_features=st.integers(1, 70),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 2**31),
)
def test_groups_of_rows_equal_float64(
    kernels: Kernels,
    counts: list[int],
    num_others: int,
    in_features: int,
    out_features: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(len(counts), out_features, in_features, generator=rng)
    weight = (weight / in_features**0.5).to(dtype)
    x = torch.randn(sum(counts) + num_others, in_features, generator=rng).to(dtype)
    y = PackedGroupedLinear(kernels, weight)(x, torch.tensor(counts).cumsum(0).int())
    assert (y.shape, y.dtype) == ((len(x), out_features), dtype)
    pieces = x[: sum(counts)].double().split(counts)
    expected = [piece @ w.double().T for piece, w in zip(pieces, weight, strict=True)]
    assert_near(y[: sum(counts)], torch.cat(expected), dtype)


@pytest.mark.parametrize("ends", [[2, 1, 3], [1, 2, 6], [-1, 2, 3], [1, 2]])
def test_ends_that_are_no_ends_are_refused(kernels: Kernels, ends: list[int]) -> None:
    linear = PackedGroupedLinear(kernels, torch.randn(3, 8, 4))
    with pytest.raises(RuntimeError, match=r"ends"):
        linear(torch.randn(5, 4), torch.tensor(ends, dtype=torch.int32))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 3, 50])
def test_norm_and_residual_are_fused(kernels: Kernels, dtype: torch.dtype, rows: int) -> None:
    torch.manual_seed(rows)
    x, residual = torch.randn(rows, 70).to(dtype) * 3, torch.randn(rows, 33).to(dtype)
    weight, norm = torch.randn(33, 70).to(dtype) / 8, torch.rand(70) + 0.5
    packed = kernels.ops.pack_weight(weight, False)
    y = kernels.ops.linear(x, packed, 33, False, None, norm, 1e-5, residual)
    normed = x.double() * torch.rsqrt(x.double().pow(2).mean(-1, keepdim=True) + 1e-5)
    normed = (normed.to(dtype).double() * norm).to(dtype).double()
    assert_near(y, normed @ weight.double().T + residual.double(), dtype)


@pytest.mark.parametrize("rows", [1, 30])
def test_float_output_and_strided_rows(kernels: Kernels, rows: int) -> None:
    torch.manual_seed(rows)
    weight = torch.randn(50, 32).bfloat16()
    wide = torch.randn(rows, 64).bfloat16()
    linear = PackedLinear(kernels, weight, None, float_output=True)
    y = kernels.ops.linear(wide[:, 32:], linear.packed, 50, float_output=True)
    assert y.dtype == torch.float32
    expected = wide[:, 32:].double() @ weight.double().T
    torch.testing.assert_close(y.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("num_threads", [1, 3])
def test_rows_come_back(kernels: Kernels, dtype: torch.dtype, num_threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        weight = torch.randn(300, 37).to(dtype)
        ids = torch.randint(0, 300, (77,))
        assert torch.equal(PackedLinear(kernels, weight, None).rows(ids), weight[ids])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("row", [-1, 64, 2**40])
def test_rows_that_are_not_there_are_refused(kernels: Kernels, row: int) -> None:
    packed = PackedLinear(kernels, torch.randn(64, 20), None)
    with pytest.raises(RuntimeError, match=f"no row {row}"):
        packed.rows(torch.tensor([3, row]))


def test_infinities_and_nans_pass(kernels: Kernels) -> None:
    weight = torch.eye(16).bfloat16()
    x = torch.zeros(2, 16).bfloat16()
    x[0, 3], x[1, 4] = torch.inf, torch.nan
    y = PackedLinear(kernels, weight, None)(x)
    assert y[1].isnan().all()
    assert y[0, 3] == torch.inf


def test_leading_dimensions_stay(kernels: Kernels) -> None:
    linear = PackedLinear(kernels, torch.randn(8, 4), None)
    assert linear(torch.randn(2, 3, 4)).shape == (2, 3, 8)


def test_half_precision_is_refused(kernels: Kernels) -> None:
    with pytest.raises(RuntimeError, match="bfloat16 and float32"):
        PackedLinear(kernels, torch.randn(8, 4).half(), None)


def test_fake_tensors_have_the_shapes(kernels: Kernels) -> None:
    weight = torch.randn(8, 4).bfloat16()
    packed = kernels.ops.pack_weight(weight, False)
    x = torch.randn(3, 4).bfloat16()
    group = kernels.ops.pack_group(weight[None])
    for operator, arguments in (
        (kernels.ops.linear, (x, packed, 8)),
        (kernels.ops.grouped_linear, (x, group, torch.tensor([3], dtype=torch.int32), 8)),
    ):
        torch.library.opcheck(
            operator.default, arguments, test_utils=("test_schema", "test_faketensor")
        )
