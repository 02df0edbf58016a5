"""Qwen2-MoE (Qwen1.5-MoE, Qwen2-57B-A14B): Qwen2 with routed experts and a shared one.

Covered: dense layers in between (`decoder_sparse_step`, `mlp_only_layers`), weights of the chosen
experts normalised or not, sliding windows as `layer_types` say, all rotary scalings of
`rope_config`. Not covered: sliding windows without `layer_types`.
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
from tokasaurus.model.families.llama import LLAMA_NAMES, read_llama_like
from tokasaurus.model.families.qwen2 import read_sliding_windows

_MLP = "model.layers.{layer}.mlp"
_SHARED = "layers.{layer}.mlp.shared"
_NAMES = {
    **LLAMA_NAMES,
    f"{_MLP}.shared_expert_gate": "layers.{layer}.mlp.shared_gate",
    f"{_MLP}.shared_expert.gate_proj": f"{_SHARED}.gate_up:gate",
    f"{_MLP}.shared_expert.up_proj": f"{_SHARED}.gate_up:up",
    f"{_MLP}.shared_expert.down_proj": f"{_SHARED}.down",
}


def _read_windows(config: ConfigReader) -> tuple[int | None, ...]:
    if config.boolean("use_sliding_window", False):
        if config.texts("layer_types") is None:
            raise config.unsupported("use_sliding_window")
        return read_sliding_windows(config)
    config.skip("sliding_window", "max_window_layers")
    if set(config.texts("layer_types") or ()) - {"full_attention"}:
        raise config.unsupported("layer_types")
    return (None,) * config.integer("num_hidden_layers")


def read_spec(config: ConfigReader) -> DecoderSpec:
    config.skip("router_aux_loss_coef", "output_router_logits")
    num_experts = config.integer("num_experts", 60)
    moe = MoESpec(
        num_experts=num_experts,
        num_experts_per_token=read_num_experts_per_token(config, 4, num_experts),
        intermediate_size=config.integer("moe_intermediate_size", 1408),
        normalize_weights=config.boolean("norm_topk_prob", False),
        shared_intermediate_size=config.integer("shared_expert_intermediate_size", 5632),
        layers=read_expert_layers(config),
    )
    return read_llama_like(
        config,
        default_positions=32_768,
        default_kv_heads=16,
        qkv_bias=config.boolean("qkv_bias", True),
        sliding_windows=_read_windows(config),
        moe=moe,
    )


def weight_names(spec: DecoderSpec) -> Mapping[str, str]:
    return {
        **_NAMES,
        f"{_MLP}.gate": "layers.{layer}.mlp.router",
        **expert_names(spec, f"{_MLP}.experts", gate="gate_proj", up="up_proj", down="down_proj"),
    }


QWEN2_MOE = Family(
    name="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    read_spec=read_spec,
    weight_names=weight_names,
    stacked_weight_names=lambda _: {**_NAMES, **STACKED_NAMES},
)
