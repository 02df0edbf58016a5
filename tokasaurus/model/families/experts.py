"""What families with mixtures of experts share: keys of config.json and names of weights."""

from collections.abc import Mapping

from tokasaurus.model.config import ConfigReader, DecoderSpec


def read_num_experts_per_token(config: ConfigReader, default: int, num_experts: int) -> int:
    """Raises UnsupportedFeatureError for more than there are."""
    chosen = config.integer("num_experts_per_tok", default)
    if chosen > num_experts:
        raise config.unsupported("num_experts_per_tok")
    return chosen


def read_expert_layers(config: ConfigReader) -> frozenset[int]:
    """The layers with experts, in the way the Qwen families write them."""
    step = config.integer("decoder_sparse_step", 1)
    dense = config.naturals("mlp_only_layers")
    num_layers = config.integer("num_hidden_layers")
    return frozenset(i for i in range(num_layers) if (i + 1) % step == 0 and i not in dense)


STACKED_WEIGHT = ".mlp.experts.gate_up_proj"
"""Ends the name of a tensor with all experts of a layer."""
STACKED_NAMES = {
    "model.layers.{layer}.mlp.gate": "layers.{layer}.mlp.router",
    "model.layers.{layer}.mlp.experts": "layers.{layer}.mlp.experts",
}
"""What transformers writes with save_original_format=False, for every family."""


def expert_names(
    spec: DecoderSpec, prefix: str, *, gate: str, up: str, down: str
) -> Mapping[str, str]:
    """For checkpoints with three tensors per expert: `prefix`.3.`gate`, and so on."""
    assert spec.moe is not None, "the spec has no experts"
    names = {}
    for expert in range(spec.moe.num_experts):
        names[f"{prefix}.{expert}.{gate}"] = f"layers.{{layer}}.mlp.experts.gate_up:{expert}.gate"
        names[f"{prefix}.{expert}.{up}"] = f"layers.{{layer}}.mlp.experts.gate_up:{expert}.up"
        names[f"{prefix}.{expert}.{down}"] = f"layers.{{layer}}.mlp.experts.down:{expert}"
    return names
