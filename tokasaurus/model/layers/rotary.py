"""Rotary position embedding (Su et al., arXiv:2104.09864) from a table of cosines and sines.

Shapes: T tokens, N heads, H head size, R rotated elements of a head, L positions of the table.
"""

import math

import torch
from torch import nn

from tokasaurus.errors import ModelError
from tokasaurus.model.config import RopeSpec


def inverse_frequencies(rope: RopeSpec, max_positions: int) -> torch.Tensor:
    """float32[R/2]: radians per position, for a context of `max_positions`."""
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.float32) / rope.rotary_dim
    frequencies = 1.0 / (rope.theta**exponents)
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        return _llama3_frequencies(rope, frequencies)
    if rope.kind == "yarn":
        return _yarn_frequencies(rope, rope.theta**exponents)
    if rope.kind == "longrope":
        is_long = max_positions > rope.original_positions
        factors = rope.long_factors if is_long else rope.short_factors
        if len(factors) != len(exponents):
            raise ModelError(
                f"config.json: longrope needs {len(exponents)} factors, not {len(factors)}."
            )
        return 1.0 / (torch.tensor(factors, dtype=torch.float32) * rope.theta**exponents)
    return frequencies


def _llama3_frequencies(rope: RopeSpec, frequencies: torch.Tensor) -> torch.Tensor:
    """Long waves are slowed by `factor`, short ones kept, those between interpolated."""
    original = rope.original_positions
    wavelengths = 2 * math.pi / frequencies
    longest = original / rope.low_freq_factor
    shortest = original / rope.high_freq_factor
    scaled = torch.where(wavelengths > longest, frequencies / rope.factor, frequencies)
    smooth = (original / wavelengths - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    between = (1 - smooth) * scaled / rope.factor + smooth * scaled
    return torch.where((wavelengths >= shortest) & (wavelengths <= longest), between, scaled)


def _yarn_frequencies(rope: RopeSpec, periods: torch.Tensor) -> torch.Tensor:
    """YaRN (Peng et al., arXiv:2309.00071): interpolate only dimensions that turn rarely."""

    def dimension_turning(rotations: float) -> float:
        turns = math.log(rope.original_positions / (rotations * 2 * math.pi))
        return rope.rotary_dim * turns / (2 * math.log(rope.theta))

    low, high = dimension_turning(rope.beta_fast), dimension_turning(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    if low == high:
        high += 0.001
    ramp = (torch.arange(rope.rotary_dim // 2, dtype=torch.float32) - low) / (high - low)
    keep = 1 - ramp.clamp(0, 1)
    return (1.0 / (rope.factor * periods)) * (1 - keep) + (1.0 / periods) * keep


class Rotary(nn.Module):
    """Looks up one step's cosines and sines, which all layers share, and applies them."""

    def __init__(
        self, rope: RopeSpec, max_positions: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        frequencies = inverse_frequencies(rope, max_positions)
        angles_LR = torch.arange(max_positions, dtype=torch.float32)[:, None] * frequencies
        factor = rope.attention_factor
        table_LR = torch.cat((angles_LR.cos() * factor, angles_LR.sin() * factor), dim=-1)
        self.rotary_dim = rope.rotary_dim
        self.table_LR: torch.Tensor
        self.register_buffer("table_LR", table_LR.to(device=device, dtype=dtype), persistent=False)

    def forward(self, positions_T: torch.Tensor) -> torch.Tensor:
        """Cosines, then sines, of each token: T1R, ready for `apply_rotary`."""
        return self.table_LR[positions_T].unsqueeze(1)


def apply_rotary(x_TNH: torch.Tensor, cos_sin_T1R: torch.Tensor) -> torch.Tensor:
    """Rotate the first R elements of each head (first half against second half)."""
    rotary_dim = cos_sin_T1R.shape[-1]
    cos, sin = cos_sin_T1R.chunk(2, dim=-1)
    first, second = x_TNH[..., :rotary_dim].chunk(2, dim=-1)
    parts = [first * cos - second * sin, second * cos + first * sin]
    if rotary_dim < x_TNH.shape[-1]:
        parts.append(x_TNH[..., rotary_dim:])
    return torch.cat(parts, dim=-1)
