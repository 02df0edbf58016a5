"""Mixtral: Mistral with a mixture of experts in every layer.

Covered: any number of experts, `sliding_window` in all layers or none, all rotary scalings of
`rope_config`. Router noise and the auxiliary loss belong to training and have no effect.
"""

from collections.abc import Mapping

from tokasaurus.model.config import ConfigReader, DecoderSpec, MoESpec
from tokasaurus.model.families.experts import (
    STACKED_NAMES,
    expert_names,
    read_num_experts_per_token,
)
from tokasaurus.model.families.family import Family
from tokasaurus.model.families.llama import LLAMA_NAMES, read_llama_like


def read_spec(config: ConfigReader) -> DecoderSpec:
    window = config.optional_integer("sliding_window", None)
    num_layers = config.integer("num_hidden_layers")
    config.skip("router_jitter_noise", "router_aux_loss_coef", "output_router_logits")
    num_experts = config.integer("num_local_experts", 8)
    moe = MoESpec(
        num_experts=num_experts,
        num_experts_per_token=read_num_experts_per_token(config, 2, num_experts),
        intermediate_size=config.integer("intermediate_size"),
        normalize_weights=True,
        layers=frozenset(range(num_layers)),
    )
    return read_llama_like(
        config,
        default_positions=131_072,
        default_eps=1e-5,
        default_kv_heads=8,
        rope={"default_theta": 1e6},
        sliding_windows=(window,) * num_layers,
        moe=moe,
    )


def weight_names(spec: DecoderSpec) -> Mapping[str, str]:
    block = "model.layers.{layer}.block_sparse_moe"
    return {
        **LLAMA_NAMES,
        f"{block}.gate": "layers.{layer}.mlp.router",
        **expert_names(spec, f"{block}.experts", gate="w1", up="w3", down="w2"),
    }


MIXTRAL = Family(
    name="mixtral",
    architecture="MixtralForCausalLM",
    read_spec=read_spec,
    weight_names=weight_names,
    stacked_weight_names=lambda _: {**LLAMA_NAMES, **STACKED_NAMES},
)
