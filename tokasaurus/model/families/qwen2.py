"""Qwen2 and Qwen2.5: Llama's tensors with biases on queries, keys and values.

Covered: sliding windows from `max_window_layers` on or as `layer_types` say, tied heads, all rotary
scalings of `rope_config`. Not covered: multimodal rotary sections (Qwen2-VL).
"""

from tokasaurus.model.config import ConfigReader, DecoderSpec
from tokasaurus.model.families.family import Family
from tokasaurus.model.families.llama import LLAMA_NAMES, read_llama_like


def read_sliding_windows(config: ConfigReader) -> tuple[int | None, ...]:
    """One per layer, in the way the Qwen families write them."""
    num_layers = config.integer("num_hidden_layers")
    window = config.optional_integer("sliding_window", 4096)
    first_layer = config.natural("max_window_layers", 28)
    layer_types = config.texts("layer_types")
    if not config.boolean("use_sliding_window", False):
        window = None
    if layer_types is None:
        return tuple(window if layer >= first_layer else None for layer in range(num_layers))
    if len(layer_types) != num_layers or not set(layer_types) <= {
        "full_attention",
        "sliding_attention",
    }:
        raise config.unsupported("layer_types")
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)


def read_spec(config: ConfigReader) -> DecoderSpec:
    return read_llama_like(
        config,
        default_positions=32_768,
        default_kv_heads=32,
        qkv_bias=True,
        sliding_windows=read_sliding_windows(config),
    )


QWEN2 = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    read_spec=read_spec,
    weight_names=lambda _: LLAMA_NAMES,
)
