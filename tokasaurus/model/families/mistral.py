"""Mistral 7B and checkpoints in its format: Llama's tensors with a sliding window.

Covered: `sliding_window` in all layers or none, all rotary scalings of `rope_config`. Not covered:
windows that differ between layers (`layer_types`), query scaling by position (Ministral 3).
"""

from tokasaurus.model.config import ConfigReader, DecoderSpec
from tokasaurus.model.families.family import Family
from tokasaurus.model.families.llama import LLAMA_NAMES, read_llama_like


def read_spec(config: ConfigReader) -> DecoderSpec:
    window = config.optional_integer("sliding_window", 4096)
    return read_llama_like(
        config,
        default_positions=131_072,
        default_kv_heads=8,
        sliding_windows=(window,) * config.integer("num_hidden_layers"),
    )


MISTRAL = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    read_spec=read_spec,
    weight_names=lambda _: LLAMA_NAMES,
)
