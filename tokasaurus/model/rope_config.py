"""Reads rotary settings from config.json, in the forms transformers 4 and 5 write them.

Covered: default, linear, dynamic (up to `max_position_embeddings`, where it equals default), yarn,
llama3 and longrope. longrope has two sets of frequencies; the short set serves contexts up to the
original length, which is therefore the default, and the long set serves any longer one.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

from tokasaurus.model.config import ConfigReader, RopeSpec, UnsupportedFeatureError

_NO_ALIASES: Mapping[str, str] = {}


def read_rope(
    config: ConfigReader,
    head_dim: int,
    *,
    default_positions: int,
    default_theta: float = 10_000.0,
    default_original: int | None = None,
    partial: bool = False,
    aliases: Mapping[str, str] = _NO_ALIASES,
) -> RopeSpec:
    """`partial`: the family knows `partial_rotary_factor`; `aliases`: its own names of kinds."""
    positions = config.integer("max_position_embeddings", default_positions)
    original = config.optional_integer("original_max_position_embeddings", default_original)
    theta = config.number("rope_theta", default_theta)
    fraction = config.number("partial_rotary_factor", 1.0) if partial else 1.0
    scaling = config.section("rope_parameters", "rope_scaling") or ConfigReader({})
    theta = scaling.number("rope_theta", theta)
    written_fraction = scaling.number("partial_rotary_factor", fraction)
    if written_fraction != fraction and not partial:
        raise scaling.unsupported("partial_rotary_factor")
    inner_original = scaling.optional_integer("original_max_position_embeddings")
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    kind = aliases.get(kind, kind)
    if kind not in _KINDS:
        raise UnsupportedFeatureError(
            f"config.json: rope type {kind!r} is not covered natively; {', '.join(_KINDS)} are."
        )
    plain = RopeSpec(
        kind="default",
        theta=theta,
        rotary_dim=int(head_dim * written_fraction),
        default_positions=positions,
        max_positions=positions,
        original_positions=original or inner_original or positions,
    )
    spec = _KINDS[kind](plain, scaling)
    scaling.finish()
    return spec


def _read_default(plain: RopeSpec, scaling: ConfigReader) -> RopeSpec:
    scaling.skip("factor", "attention_factor", "short_factor", "long_factor")
    return plain


def _read_linear(plain: RopeSpec, scaling: ConfigReader) -> RopeSpec:
    factor = scaling.number("factor")
    return replace(
        plain,
        kind="linear",
        factor=factor,
        max_positions=max(plain.max_positions, int(plain.max_positions * factor)),
    )


def _read_dynamic(plain: RopeSpec, scaling: ConfigReader) -> RopeSpec:
    return replace(plain, kind="dynamic", factor=scaling.number("factor"))


def _read_llama3(plain: RopeSpec, scaling: ConfigReader) -> RopeSpec:
    return replace(
        plain,
        kind="llama3",
        factor=scaling.number("factor"),
        low_freq_factor=scaling.number("low_freq_factor"),
        high_freq_factor=scaling.number("high_freq_factor"),
    )


def _read_yarn(plain: RopeSpec, scaling: ConfigReader) -> RopeSpec:
    factor = scaling.optional_number("factor")
    if factor is None:
        factor = plain.max_positions / plain.original_positions
    attention_factor = scaling.optional_number("attention_factor")
    mscale = scaling.number("mscale", 0.0)
    mscale_all_dim = scaling.number("mscale_all_dim", 0.0)
    if attention_factor is None:
        attention_factor = _yarn_temperature(factor, 1.0)
        if mscale and mscale_all_dim:
            attention_factor = _yarn_temperature(factor, mscale) / _yarn_temperature(
                factor, mscale_all_dim
            )
    positions = max(plain.max_positions, int(plain.original_positions * factor))
    return replace(
        plain,
        kind="yarn",
        factor=factor,
        attention_factor=attention_factor,
        default_positions=positions,
        max_positions=positions,
        beta_fast=scaling.number("beta_fast", 0.0) or 32.0,
        beta_slow=scaling.number("beta_slow", 0.0) or 1.0,
        truncate=scaling.boolean("truncate", True),
    )


def _yarn_temperature(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _read_longrope(plain: RopeSpec, scaling: ConfigReader) -> RopeSpec:
    original = plain.original_positions
    factor = scaling.optional_number("factor")
    if factor is None:
        factor = plain.max_positions / original
    attention_factor = scaling.optional_number("attention_factor")
    if attention_factor is None:
        attention_factor = (
            1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
        )
    return replace(
        plain,
        kind="longrope",
        factor=factor,
        attention_factor=attention_factor,
        default_positions=min(original, plain.max_positions),
        short_factors=scaling.numbers("short_factor"),
        long_factors=scaling.numbers("long_factor"),
    )


_KINDS = {
    "default": _read_default,
    "linear": _read_linear,
    "dynamic": _read_dynamic,
    "yarn": _read_yarn,
    "llama3": _read_llama3,
    "longrope": _read_longrope,
}
