"""Qwen3 (dense): Llama's tensors with a norm on each query and key head.

Covered: head sizes apart from the hidden size, attention biases, sliding windows as in Qwen2, tied
heads, all rotary scalings of `rope_config`. Not covered: mixtures of experts.
"""

from tokasaurus.model.config import ConfigReader, DecoderSpec
from tokasaurus.model.families.family import Family
from tokasaurus.model.families.llama import LLAMA_NAMES, read_llama_like
from tokasaurus.model.families.qwen2 import read_sliding_windows

QWEN3_NAMES = {
    **LLAMA_NAMES,
    "model.layers.{layer}.self_attn.q_norm": "layers.{layer}.attention.q_norm",
    "model.layers.{layer}.self_attn.k_norm": "layers.{layer}.attention.k_norm",
}


def read_spec(config: ConfigReader) -> DecoderSpec:
    attention_bias = config.boolean("attention_bias", False)
    return read_llama_like(
        config,
        default_positions=32_768,
        default_head_dim=128,
        default_kv_heads=32,
        qkv_bias=attention_bias,
        attention_out_bias=attention_bias,
        qk_norm=True,
        sliding_windows=read_sliding_windows(config),
    )


QWEN3 = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    read_spec=read_spec,
    weight_names=lambda _: QWEN3_NAMES,
)
