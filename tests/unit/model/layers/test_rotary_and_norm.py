"""Rotary embedding and norms against their definitions in float64."""

import math

import pytest
import torch

from tokasaurus.errors import ModelError
from tokasaurus.model.config import ConfigReader, RopeSpec, TensorSpec
from tokasaurus.model.layers.norm import LayerNorm, RMSNorm
from tokasaurus.model.layers.rotary import Rotary, apply_rotary, inverse_frequencies
from tokasaurus.model.rope_config import read_rope

CPU = torch.device("cpu")
TENSORS = TensorSpec(dtype=torch.float32, device=CPU)


def rope(**scaling: object) -> RopeSpec:
    values = {"max_position_embeddings": 64, "rope_scaling": scaling}
    return read_rope(ConfigReader(values), 16, default_positions=64)


def test_rotation_turns_pairs_by_position() -> None:
    spec = rope()
    x = torch.randn(5, 3, 16)
    positions = torch.tensor([0, 1, 7, 30, 63])
    rotated = apply_rotary(x, Rotary(spec, 64, torch.float32, CPU)(positions))
    for token, position in enumerate(positions.tolist()):
        for pair in range(8):
            angle = position * 10_000.0 ** (-2 * pair / 16)
            turn = complex(math.cos(angle), math.sin(angle))
            for head in range(3):
                before = complex(x[token, head, pair], x[token, head, pair + 8])
                after = complex(rotated[token, head, pair], rotated[token, head, pair + 8])
                assert after == pytest.approx(before * turn, abs=1e-4)


def test_partial_rotation_leaves_the_rest() -> None:
    values = {"max_position_embeddings": 64, "partial_rotary_factor": 0.5}
    spec = read_rope(ConfigReader(values), 16, default_positions=64, partial=True)
    x = torch.randn(4, 2, 16)
    rotated = apply_rotary(x, Rotary(spec, 64, torch.float32, CPU)(torch.arange(4)))
    assert torch.equal(rotated[..., 8:], x[..., 8:])
    assert not torch.equal(rotated[1:, :, :8], x[1:, :, :8])


def test_linear_scaling_stretches_positions() -> None:
    plain, stretched = rope(), rope(rope_type="linear", factor=4.0)
    torch.testing.assert_close(
        inverse_frequencies(stretched, 64) * 4, inverse_frequencies(plain, 64)
    )
    assert (stretched.default_positions, stretched.max_positions) == (64, 256)


def test_yarn_keeps_fast_dimensions_and_stretches_slow_ones() -> None:
    plain = inverse_frequencies(rope(), 64)
    scaled = rope(rope_type="yarn", factor=4.0, beta_fast=4, original_max_position_embeddings=64)
    ratio = plain / inverse_frequencies(scaled, 64)
    assert ratio[0] == pytest.approx(1.0)
    assert ratio[-1] == pytest.approx(4.0)
    assert (ratio.diff() >= -1e-5).all()
    assert scaled.attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    assert scaled.default_positions == 256


def test_longrope_picks_its_set_by_the_context_served() -> None:
    spec = rope(
        rope_type="longrope",
        short_factor=[1.0] * 8,
        long_factor=[2.0] * 8,
        original_max_position_embeddings=16,
    )
    short, long = inverse_frequencies(spec, 16), inverse_frequencies(spec, 17)
    torch.testing.assert_close(short, 2 * long)
    assert (spec.default_positions, spec.max_positions) == (16, 64)


def test_longrope_with_too_few_factors() -> None:
    spec = rope(
        rope_type="longrope",
        short_factor=[1.0],
        long_factor=[2.0],
        original_max_position_embeddings=16,
    )
    with pytest.raises(ModelError, match="8 factors"):
        inverse_frequencies(spec, 16)


def test_rms_norm_adds_the_residual_first() -> None:
    norm = RMSNorm(8, 1e-6, TENSORS)
    norm.weight.copy_(torch.randn(8))
    x, residual = torch.randn(3, 8), torch.randn(3, 8)
    normed, total = norm(x, residual)
    wide = (x + residual).double()
    expected = norm.weight * wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert torch.equal(total, x + residual)
    torch.testing.assert_close(normed, expected.float())


def test_layer_norm_without_a_residual() -> None:
    norm = LayerNorm(8, 1e-5, TENSORS)
    norm.weight.copy_(torch.randn(8))
    norm.parameter("bias").copy_(torch.randn(8))
    x = torch.randn(3, 8)
    normed, total = norm(x, None)
    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    assert total is x
    torch.testing.assert_close(normed, (expected * norm.weight + norm.bias).float())
