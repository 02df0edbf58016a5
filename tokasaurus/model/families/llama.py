"""Llama 1 to 3, and checkpoints in its format.

Covered: grouped queries, all rotary scalings of `rope_config`, attention and MLP biases, tied and
untied heads, any activation of `layers.activation`. Not covered: partial rotary embedding.
"""

from collections.abc import Mapping
from typing import Any

from tokasaurus.model.config import ConfigReader, DecoderSpec
from tokasaurus.model.families.family import Family
from tokasaurus.model.layers.activation import ACTIVATIONS
from tokasaurus.model.rope_config import read_rope

LLAMA_NAMES = {
    "model.embed_tokens": "embedding",
    "model.layers.{layer}.input_layernorm": "layers.{layer}.attention_norm",
    "model.layers.{layer}.self_attn.q_proj": "layers.{layer}.attention.qkv:q",
    "model.layers.{layer}.self_attn.k_proj": "layers.{layer}.attention.qkv:k",
    "model.layers.{layer}.self_attn.v_proj": "layers.{layer}.attention.qkv:v",
    "model.layers.{layer}.self_attn.o_proj": "layers.{layer}.attention.out",
    "model.layers.{layer}.post_attention_layernorm": "layers.{layer}.mlp_norm",
    "model.layers.{layer}.mlp.gate_proj": "layers.{layer}.mlp.gate_up:gate",
    "model.layers.{layer}.mlp.up_proj": "layers.{layer}.mlp.gate_up:up",
    "model.layers.{layer}.mlp.down_proj": "layers.{layer}.mlp.down",
    "model.norm": "norm",
    "lm_head": "head",
}


def read_activation(config: ConfigReader, key: str, default: str) -> str:
    activation = config.text(key, default)
    if activation not in ACTIVATIONS:
        raise config.unsupported(key)
    return activation


def read_llama_like(
    config: ConfigReader,
    *,
    default_positions: int,
    default_eps: float = 1e-6,
    default_head_dim: int | None = None,
    default_kv_heads: int | None = None,
    rope: Mapping[str, Any] | None = None,
    **features: Any,
) -> DecoderSpec:
    """The keys that Llama and its descendants share; `features` are further spec fields."""
    num_heads = config.integer("num_attention_heads")
    hidden_size = config.integer("hidden_size")
    head_dim = config.integer("head_dim", default_head_dim or hidden_size // num_heads)
    num_layers = config.integer("num_hidden_layers")
    features.setdefault("sliding_windows", (None,) * num_layers)
    return DecoderSpec(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=config.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=config.optional_integer("num_key_value_heads", default_kv_heads) or num_heads,
        head_dim=head_dim,
        rope=read_rope(config, head_dim, default_positions=default_positions, **(rope or {})),
        norm_eps=config.number("rms_norm_eps", default_eps),
        activation=read_activation(config, "hidden_act", "silu"),
        tie_embeddings=config.boolean("tie_word_embeddings", False),
        **features,
    )


def read_spec(config: ConfigReader) -> DecoderSpec:
    attention_bias = config.boolean("attention_bias", False)
    config.only("rope_interleaved", False)
    config.skip("is_llama_config")
    return read_llama_like(
        config,
        default_positions=2048,
        qkv_bias=attention_bias,
        attention_out_bias=attention_bias,
        mlp_bias=config.boolean("mlp_bias", False),
    )


LLAMA = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    read_spec=read_spec,
    weight_names=lambda _: LLAMA_NAMES,
)
