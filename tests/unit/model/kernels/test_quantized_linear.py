"""Linear layers in few bits: exact integers for int8, a float64 product for weight-only formats."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernel_flavours import FLAVOURS, kernels_of
from tokasaurus.model.kernels.linear import PackedGroupedLinear, PackedLinear
from tokasaurus.model.kernels.loader import Kernels
from tokasaurus.model.quantization.scheme import WeightFormat, WeightKind

INT8 = WeightFormat(WeightKind.INT8)
INT8_WEIGHTS = WeightFormat(WeightKind.INT8_WEIGHTS)
INT4_WEIGHTS = [WeightFormat(WeightKind.INT4_WEIGHTS, size) for size in (32, 64, 128)]
WEIGHT_ONLY = [INT8_WEIGHTS, *INT4_WEIGHTS]
FORMATS = [INT8, *WEIGHT_ONLY]
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-7}
"""Per dtype, an error that no root-sum-square of rounded terms reaches: products of many bfloat16
rows round the weights, too, by a standard deviation of at most 2**-9 / 3**0.5."""
DTYPES = list(ROUNDING)
ROWS = st.integers(0, 30) | st.sampled_from([1, 95, 130])
OUT_FEATURES = st.integers(1, 100) | st.sampled_from([450, 1000])
IN_FEATURES = st.integers(1, 80) | st.sampled_from([255, 256, 257, 520, 1100])


@pytest.fixture(params=FLAVOURS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return kernels_of(request.param)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def round_to_int8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels (int64) and scales of each row."""
    scales = rows.abs().amax(-1, keepdim=True) / 127
    return torch.round(rows / scales).nan_to_num(0).long(), scales


def round_activations(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `round_to_int8`, with the factor that the kernels multiply by."""
    largest = rows.abs().amax(-1, keepdim=True)
    factors = torch.where(largest > 0, torch.full_like(largest, 127) / largest, 0)
    return torch.round(rows * factors).long(), largest / 127


@settings(max_examples=50)
@given(
    rows=ROWS,
    in_features=IN_FEATURES,
    out_features=OUT_FEATURES,
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_int8_is_the_integer_product(
    kernels: Kernels, rows: int, in_features: int, out_features: int, dtype: torch.dtype, seed: int
) -> None:
    weight = draw(seed, out_features, in_features).to(dtype)
    x = draw(seed + 1, rows, in_features).to(dtype)
    layer = PackedLinear(kernels, weight, None, float_output=True, weight_format=INT8)
    weight_levels, weight_scales = round_to_int8(weight.float())
    levels, scales = round_activations(x.float())
    sums = (levels @ weight_levels.T).float()
    assert torch.equal(layer(x), sums * (weight_scales.T * scales))


@pytest.mark.parametrize("rows", [1, 3, 9])
def test_gated_int8_is_the_integer_product(kernels: Kernels, rows: int) -> None:
    """But for the rounding of SiLU's own exponential."""
    weight, x = draw(0, 90, 200), draw(1, rows, 200)
    layer = PackedLinear(kernels, weight, None, gated=True, weight_format=INT8)
    weight_levels, weight_scales = round_to_int8(weight)
    levels, scales = round_activations(x)
    gate, up = ((levels @ weight_levels.T).float() * (weight_scales.T * scales)).chunk(2, -1)
    torch.testing.assert_close(layer(x), F.silu(gate) * up, atol=1e-6, rtol=1e-5)


@settings(max_examples=60)
@given(
    weight_format=st.sampled_from(WEIGHT_ONLY),
    rows=ROWS,
    in_features=IN_FEATURES,
    out_features=OUT_FEATURES,
    gated=st.booleans(),
    has_bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_weight_only_is_the_product_with_the_rounded_weight(
    kernels: Kernels,
    weight_format: WeightFormat,
    rows: int,
    in_features: int,
    out_features: int,
    gated: bool,
    has_bias: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    num_rows = 2 * out_features if gated else out_features
    weight = draw(seed, num_rows, in_features).to(dtype) / in_features**0.5
    bias = draw(seed + 2, num_rows).to(dtype) if has_bias else None
    x = draw(seed + 1, rows, in_features).to(dtype)
    rounded = rounded_weight(kernels, weight.float(), weight_format)
    y = PackedLinear(kernels, weight, bias, gated=gated, weight_format=weight_format)(x)
    expected = F.linear(x.double(), rounded, None if bias is None else bias.double())
    allowed = ROUNDING[dtype] * (x.double().square() @ rounded.square().T).sqrt()
    if gated:
        gate, up = expected.chunk(2, dim=-1)
        of_gate, of_up = allowed.chunk(2, dim=-1)
        # The slope of silu is at most 1.1.
        expected, allowed = F.silu(gate) * up, 1.1 * of_gate * up.abs() + F.silu(gate).abs() * of_up
    assert y.dtype == dtype
    assert (
        (y.double() - expected).abs() <= allowed + ROUNDING[dtype] * (expected.abs() + 1e-2)
    ).all()


@settings(max_examples=40)
@given(
    weight_format=st.sampled_from(WEIGHT_ONLY),
    rows=st.integers(1, 4),
    in_features=IN_FEATURES,
    outlier=st.sampled_from([1.0, 1e4]),
    seed=st.integers(0, 2**31),
)
def test_few_bfloat16_rows_keep_sixteen_bits(
    kernels: Kernels,
    weight_format: WeightFormat,
    rows: int,
    in_features: int,
    outlier: float,
    seed: int,
) -> None:
    """Of the largest number of a piece: an outlier is felt in its own one alone."""
    weight = (draw(seed, 40, in_features) / in_features**0.5).bfloat16()
    x = draw(seed + 1, rows, in_features).bfloat16()
    x[:, seed % in_features] *= outlier
    rounded = rounded_weight(kernels, weight.float(), weight_format)
    y = PackedLinear(kernels, weight, None, float_output=True, weight_format=weight_format)(x)
    expected = x.double() @ rounded.T
    allowed = 1e-5 * ((x.double().square() @ rounded.square().T).sqrt() + expected.abs() + 1e-2)
    piece = weight_format.group_size or 128
    for numbers, weights in zip(x.double().split(piece, 1), rounded.split(piece, 1), strict=True):
        allowed += numbers.abs().amax(1, keepdim=True) / 65_000 * weights.abs().sum(1)
    assert ((y.double() - expected).abs() <= allowed).all()


def rounded_weight(
    kernels: Kernels, weight: torch.Tensor, weight_format: WeightFormat
) -> torch.Tensor:
    layer = PackedLinear(kernels, weight, None, weight_format=weight_format)
    return layer.rows(torch.arange(len(weight))).double()


@settings(max_examples=40)
@given(
    weight_format=st.sampled_from(FORMATS),
    in_features=IN_FEATURES,
    out_features=st.integers(1, 60),
    offset=st.sampled_from([0.0, 3.0]),
    seed=st.integers(0, 2**31),
)
def test_weights_move_by_half_a_step(
    kernels: Kernels,
    weight_format: WeightFormat,
    in_features: int,
    out_features: int,
    offset: float,
    seed: int,
) -> None:
    """At most, with all the range covered; the search for narrower grids only lowers the mean."""
    weight = draw(seed, out_features, in_features) + offset
    error = (rounded_weight(kernels, weight, weight_format) - weight).abs()
    if weight_format.kind != WeightKind.INT4_WEIGHTS:
        assert (error <= weight.abs().amax(1, keepdim=True) / 127 * 0.5001).all()
        return
    for first in range(0, in_features, weight_format.group_size):
        group = slice(first, first + weight_format.group_size)
        low, high = weight[:, group].aminmax(dim=1)
        step = (high - low) / 15
        # bf16 grids: scale and minimum are off by up to one part in 256 each.
        slack = (low.abs() + high - low) / 256
        root_mean_square = error[:, group].square().mean(1).sqrt()
        assert (root_mean_square <= step / 2 + slack).all()


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("rows", [1, 3, 50])
def test_norm_bias_and_residual_are_fused(
    kernels: Kernels, weight_format: WeightFormat, rows: int
) -> None:
    x, residual = draw(rows, rows, 70) * 3, draw(1, rows, 33)
    weight, norm, bias = draw(2, 33, 70) / 8, torch.rand(70) + 0.5, draw(3, 33)
    packed = kernels.ops.pack_weight(weight, False, *weight_format.arguments)
    y = kernels.ops.linear(
        x, packed, 33, False, bias, norm, 1e-5, residual, False, *weight_format.arguments
    )
    normed = F.rms_norm(x, (70,), norm, 1e-5)
    plain = PackedLinear(kernels, weight, bias, weight_format=weight_format)(normed)
    # int8: a last bit of the norm may move an activation by one level.
    tolerance = 0.02 if weight_format == INT8 else 1e-4
    torch.testing.assert_close(y, plain + residual, atol=tolerance, rtol=1e-4)


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("rows", [1, 9])
def test_gated_halves_belong_together(
    kernels: Kernels, weight_format: WeightFormat, rows: int
) -> None:
    weight, x = draw(0, 80, 96), draw(1, rows, 96)
    gate, up = (
        PackedLinear(kernels, half, None, weight_format=weight_format)(x)
        for half in weight.chunk(2)
    )
    y = PackedLinear(kernels, weight, None, gated=True, weight_format=weight_format)(x)
    torch.testing.assert_close(y, F.silu(gate) * up, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_zeros_stay_zeros(kernels: Kernels, weight_format: WeightFormat) -> None:
    weight, x = draw(0, 20, 40), draw(1, 3, 40)
    weight[4], x[1] = 0, 0
    y = PackedLinear(kernels, weight, None, weight_format=weight_format)(x)
    assert (y[:, 4] == 0).all()
    assert (y[1] == 0).all()
    assert y.isfinite().all()


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_what_is_not_finite_does_not_look_right(
    kernels: Kernels, weight_format: WeightFormat, bad: float
) -> None:
    weight, x = draw(0, 20, 40), draw(1, 3, 40)
    x[1, 7] = bad
    y = PackedLinear(kernels, weight, None, weight_format=weight_format)(x)
    assert not y[1].isfinite().any()
    assert y[[0, 2]].isfinite().all()
    weight[4, 2] = bad
    y = PackedLinear(kernels, weight, None, weight_format=weight_format)(x[[0, 2]])
    assert y[:, 4].isnan().all()
    assert y[:, 5].isfinite().all()


def test_tiny_activations_are_zeros(kernels: Kernels) -> None:
    x = torch.full((2, 40), 1e-39)
    x[1, 3] = 0
    y = PackedLinear(kernels, draw(0, 20, 40), None, weight_format=INT8)(x)
    assert (y == 0).all()


def test_extreme_levels_do_not_saturate(kernels: Kernels) -> None:
    """All products at their largest, which overflow 16 bits in pairs."""
    weight, x = torch.full((8, 4096), -1.0), torch.ones(7, 4096)
    y = PackedLinear(kernels, weight, None, weight_format=INT8)(x)
    torch.testing.assert_close(y, torch.full((7, 8), -4096.0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("weight_format", WEIGHT_ONLY)
@pytest.mark.parametrize("sign", [1, -1])
def test_extreme_codes_do_not_saturate(
    kernels: Kernels, weight_format: WeightFormat, sign: int
) -> None:
    """Rows of bfloat16 become integers, too: all codes and numbers at their largest."""
    weight = torch.full((8, 1100), 15.0, dtype=torch.bfloat16)
    weight[:, ::32] = 0  # each group's grid is 0, 1, ... 15
    x = torch.full((6, 1100), float(sign), dtype=torch.bfloat16)
    for rows in (1, 2, 3, 6):
        y = PackedLinear(kernels, weight, None, float_output=True, weight_format=weight_format)(
            x[:rows]
        )
        torch.testing.assert_close(y, x[:rows].float() @ weight.float().T, rtol=1e-4, atol=0)


@pytest.mark.parametrize("weight_format", WEIGHT_ONLY)
@pytest.mark.parametrize("rows", [1, 3, 9])
def test_huge_rows_do_not_overflow(
    kernels: Kernels, weight_format: WeightFormat, rows: int
) -> None:
    weight, x = draw(0, 20, 300), draw(1, rows, 300)
    layer = PackedLinear(kernels, weight, None, weight_format=weight_format)
    torch.testing.assert_close(layer(x * 2.0**110), layer(x) * 2.0**110, rtol=1e-6, atol=0)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_groups_are_layers_of_their_own(kernels: Kernels, weight_format: WeightFormat) -> None:
    weights, x = draw(0, 3, 20, 48), draw(1, 12, 48)
    grouped = PackedGroupedLinear(kernels, weights, weight_format)
    y = grouped(x, torch.tensor([5, 5, 12], dtype=torch.int32))
    expected = [
        PackedLinear(kernels, weight, None, weight_format=weight_format)(rows)
        for weight, rows in ((weights[0], x[:5]), (weights[2], x[5:]))
    ]
    assert torch.equal(y, torch.cat(expected))


@pytest.mark.slow  # builds a second flavour, which takes both cores for half a minute
def test_flavours_give_the_same_bits(kernels: Kernels) -> None:
    weight, x = draw(0, 50, 300), draw(1, 20, 300)
    results = [
        PackedLinear(flavour, weight, None, weight_format=INT8)(x)
        for flavour in (kernels, kernels_of("generic"))
    ]
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("kind", "group_size", "message"),
    [(3, 0, "32, 64 or 128"), (3, 48, "32, 64 or 128"), (1, 32, "0 otherwise"), (9, 0, "format 9")],
)
def test_unknown_formats_are_refused(
    kernels: Kernels, kind: int, group_size: int, message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        kernels.ops.pack_weight(draw(0, 8, 8), False, kind, group_size)


def test_a_packed_weight_of_another_format_is_refused(kernels: Kernels) -> None:
    layer = PackedLinear(kernels, draw(0, 16, 64), None, weight_format=INT8)
    with pytest.raises(RuntimeError, match="packed weight"):
        kernels.ops.linear(draw(1, 2, 64), layer.packed, 16)


def test_fake_tensors_have_the_shapes(kernels: Kernels) -> None:
    packed = kernels.ops.pack_weight(draw(0, 8, 40), False, *INT8.arguments)
    x = draw(1, 3, 40).bfloat16()
    torch.library.opcheck(
        kernels.ops.linear.default,
        (x, packed, 8, False, None, None, 0.0, None, True, *INT8.arguments),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_format", [WeightFormat(), *FORMATS[:3]])
def test_rows_do_not_depend_on_the_number_of_threads(
    kernels: Kernels, dtype: torch.dtype, weight_format: WeightFormat
) -> None:
    """Shares of panels, the streams within them and barriers do; there are fewer panels than
    threads, too."""
    before = torch.get_num_threads()
    try:
        for out_features in (40, 700):
            weight = draw(out_features, out_features, 200).to(dtype)
            linear = PackedLinear(kernels, weight, None, weight_format=weight_format)
            for rows in (1, 3):
                x = draw(rows, rows, 200).to(dtype)
                outputs = []
                for num_threads in (1, 2, 3, 5):
                    torch.set_num_threads(num_threads)
                    outputs.append(linear(x))
                assert all(torch.equal(outputs[0], other) for other in outputs[1:])
    finally:
        torch.set_num_threads(before)
