"""Phi-3, Phi-3.5 and Phi-4: fused QKV and gate-up tensors, partial rotary embedding, longrope.

Covered: mini and medium sizes in all context lengths (see `rope_config` for longrope), sliding
window, Phi-4 mini. Not covered: Phi-3-small (block-sparse attention), mixtures of experts.
"""

from tokasaurus.model.config import ConfigReader, DecoderSpec
from tokasaurus.model.families.family import Family
from tokasaurus.model.families.llama import LLAMA_NAMES, read_llama_like

_SPLIT_NAMES = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")

PHI3_NAMES = {
    **{name: ours for name, ours in LLAMA_NAMES.items() if not name.endswith(_SPLIT_NAMES)},
    "model.layers.{layer}.self_attn.qkv_proj": "layers.{layer}.attention.qkv:qkv",
    "model.layers.{layer}.mlp.gate_up_proj": "layers.{layer}.mlp.gate_up:gate_up",
}


def read_spec(config: ConfigReader) -> DecoderSpec:
    for key in ("full_attn_mod", "interpolate_factor"):
        config.only(key, 1)
    window = config.optional_integer("sliding_window")
    return read_llama_like(
        config,
        default_positions=4096,
        default_eps=1e-5,
        rope={
            "partial": True,
            "default_original": 4096,
            "aliases": {"su": "longrope", "yarn": "longrope"},
        },
        sliding_windows=(window,) * config.integer("num_hidden_layers"),
    )


PHI3 = Family(
    name="phi3",
    architecture="Phi3ForCausalLM",
    read_spec=read_spec,
    weight_names=lambda _: PHI3_NAMES,
)
