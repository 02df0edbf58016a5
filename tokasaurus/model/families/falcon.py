"""Falcon in its 7B form (one norm, attention beside the MLP) and 40B/180B form (two norms).

Covered: multi-query and grouped heads in the fused QKV tensor, biases, one or two norms in the new
form, the old form with the MLP after attention. Not covered: ALiBi (falcon-rw).
"""

from typing import Literal

from tokasaurus.model.config import ConfigReader, DecoderSpec
from tokasaurus.model.families.family import Family
from tokasaurus.model.families.llama import read_activation
from tokasaurus.model.rope_config import read_rope
from tokasaurus.model.weights.loading import LAYER

FALCON_NAMES = {
    "transformer.word_embeddings": "embedding",
    "transformer.h.{layer}.self_attention.query_key_value": (
        "layers.{layer}.attention.qkv:grouped"
    ),
    "transformer.h.{layer}.self_attention.dense": "layers.{layer}.attention.out",
    "transformer.h.{layer}.mlp.dense_h_to_4h": "layers.{layer}.mlp.up",
    "transformer.h.{layer}.mlp.dense_4h_to_h": "layers.{layer}.mlp.down",
    "transformer.ln_f": "norm",
    "lm_head": "head",
}

_NORM_NAMES = {
    "sequential": {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"},
    "parallel": {"ln_attn": "attention_norm", "ln_mlp": "mlp_norm"},
    "parallel_shared_norm": {"input_layernorm": "attention_norm"},
}

Block = Literal["sequential", "parallel", "parallel_shared_norm"]


def _read_block(config: ConfigReader, is_new: bool) -> Block:
    is_parallel = config.boolean("parallel_attn", True)
    num_norms = config.integer("num_ln_in_parallel_attn", 2 if is_new else 1)
    if num_norms > 2 or (num_norms == 2 and not is_new):
        raise config.unsupported("num_ln_in_parallel_attn")
    if is_new and not is_parallel:
        raise config.unsupported("parallel_attn")
    if not is_parallel:
        return "sequential"
    return "parallel" if num_norms == 2 else "parallel_shared_norm"


def read_spec(config: ConfigReader) -> DecoderSpec:
    config.skip("ff_factor")  # ffn_hidden_size says the same
    if config.boolean("alibi", False):
        raise config.unsupported("alibi")
    hidden_size = config.integer("hidden_size")
    num_heads = config.integer("num_attention_heads")
    num_layers = config.integer("num_hidden_layers")
    head_dim = hidden_size // num_heads
    is_new = config.boolean("new_decoder_architecture", False)
    is_multi_query = config.boolean("multi_query", True)
    num_kv_heads = config.integer("num_kv_heads", num_heads)
    bias = config.boolean("bias", False)
    return DecoderSpec(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=config.integer("ffn_hidden_size", 4 * hidden_size),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=1 if is_multi_query and not is_new else num_kv_heads,
        head_dim=head_dim,
        rope=read_rope(config, head_dim, default_positions=2048),
        norm="layer",
        norm_eps=config.number("layer_norm_epsilon", 1e-5),
        mlp="plain",
        activation=read_activation(config, "activation", "gelu"),
        block=_read_block(config, is_new),
        qkv_bias=bias,
        attention_out_bias=bias,
        mlp_bias=bias,
        sliding_windows=(None,) * num_layers,
        tie_embeddings=config.boolean("tie_word_embeddings", True),
    )


def weight_names(spec: DecoderSpec) -> dict[str, str]:
    norms = _NORM_NAMES[spec.block]
    return {
        **FALCON_NAMES,
        **{f"transformer.h.{LAYER}.{theirs}": f"layers.{LAYER}.{n}" for theirs, n in norms.items()},
    }


FALCON = Family(
    name="falcon",
    architecture="FalconForCausalLM",
    read_spec=read_spec,
    weight_names=weight_names,
)
