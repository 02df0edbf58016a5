"""Qwen3-MoE (Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder): Qwen3 with a mixture of experts.

Covered: dense layers in between (`decoder_sparse_step`, `mlp_only_layers`), weights of the chosen
experts normalised or not, one sliding window for all layers, all rotary scalings of `rope_config`.
Not covered: shared experts.
"""

from collections.abc import Mapping

from tokasaurus.model.config import ConfigReader, DecoderSpec, MoESpec
from tokasaurus.model.families.experts import (
    STACKED_NAMES,
    expert_names,
    read_expert_layers,
    read_num_experts_per_token,
)
from tokasaurus.model.families.family import Family
from tokasaurus.model.families.llama import read_llama_like
from tokasaurus.model.families.qwen3 import QWEN3_NAMES

_MLP = "model.layers.{layer}.mlp"


def read_spec(config: ConfigReader) -> DecoderSpec:
    config.skip("router_aux_loss_coef", "output_router_logits", "max_window_layers")
    config.only("shared_expert_intermediate_size", 0)
    config.only("qkv_bias", False)
    num_experts = config.integer("num_experts", config.integer("num_local_experts", 128))
    moe = MoESpec(
        num_experts=num_experts,
        num_experts_per_token=read_num_experts_per_token(config, 8, num_experts),
        intermediate_size=config.integer("moe_intermediate_size", 768),
        normalize_weights=config.boolean("norm_topk_prob", False),
        layers=read_expert_layers(config),
    )
    attention_bias = config.boolean("attention_bias", False)
    window = config.optional_integer("sliding_window", 4096)
    if not config.boolean("use_sliding_window", False):
        window = None
    return read_llama_like(
        config,
        default_positions=32_768,
        default_kv_heads=4,
        qkv_bias=attention_bias,
        attention_out_bias=attention_bias,
        qk_norm=True,
        sliding_windows=(window,) * config.integer("num_hidden_layers"),
        moe=moe,
    )


def weight_names(spec: DecoderSpec) -> Mapping[str, str]:
    return {
        **QWEN3_NAMES,
        f"{_MLP}.gate": "layers.{layer}.mlp.router",
        **expert_names(spec, f"{_MLP}.experts", gate="gate_proj", up="up_proj", down="down_proj"),
    }


QWEN3_MOE = Family(
    name="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    read_spec=read_spec,
    weight_names=weight_names,
    stacked_weight_names=lambda _: {**QWEN3_NAMES, **STACKED_NAMES},
)
