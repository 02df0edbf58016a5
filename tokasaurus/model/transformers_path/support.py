"""Which transformers classes can run on paged attention, told before any weight is read."""

from collections.abc import Iterator
from typing import Any

from tokasaurus.config.model_files import ModelConfig
from tokasaurus.errors import ModelError
from tokasaurus.model.config import UnsupportedFeatureError

TESTED = (
    "GPT2LMHeadModel",
    "GPTNeoXForCausalLM",
    "OPTForCausalLM",
    "PhiForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "MixtralForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3MoeForCausalLM",
    "GptOssForCausalLM",
    "OlmoForCausalLM",
    "Olmo2ForCausalLM",
)

WHAT_WORKS = (
    "Through transformers run decoder-only models whose code uses its attention interface, among "
    f"them {', '.join(TESTED)}."
)

_OTHER_INPUTS = ("vision_config", "audio_config", "speech_config", "image_token_id")


def causal_class(config: ModelConfig) -> Any:
    """The transformers class of the checkpoint. Raises UnsupportedFeatureError if it can't run."""
    from transformers import PreTrainedModel
    from transformers.models.auto import modeling_auto

    architecture = config.architecture
    known = set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if architecture not in known:
        raise UnsupportedFeatureError(
            f"{architecture} is no causal language model of transformers."
        )
    if config.values.get("is_encoder_decoder"):
        raise UnsupportedFeatureError(f"{architecture} has an encoder, which is not supported.")
    if any(config.values.get(key) is not None for key in _OTHER_INPUTS):
        raise UnsupportedFeatureError(f"{architecture} is multimodal, which is not supported.")
    import transformers

    found: type[PreTrainedModel] = getattr(transformers, architecture)
    if not getattr(found, "_supports_attention_backend", False):
        raise UnsupportedFeatureError(
            f"{architecture} does not use transformers' attention interface, so its attention "
            f"can't be replaced by a paged one."
        )
    if getattr(found, "_is_stateful", False):
        raise UnsupportedFeatureError(f"{architecture} has recurrent state, not supported.")
    return found


def position_limit(config: ModelConfig) -> int | None:
    """Largest context that positions allow; None if config.json names none.

    transformers recomputes dynamic and longrope frequencies from the longest row of a batch. Below
    this limit they are constant, so that rows do not depend on each other.
    """
    limits = [] if config.max_position_embeddings is None else [config.max_position_embeddings]
    for scaling in _rope_scalings(config.values):
        if scaling.get("rope_type", scaling.get("type")) == "longrope":
            original = config.values.get("original_max_position_embeddings") or scaling.get(
                "original_max_position_embeddings"
            )
            limits += [original] if isinstance(original, int) else []
    return min(limits, default=None)


def _rope_scalings(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every object below `values` that names a rope type."""
    for value in values.values():
        if isinstance(value, dict):
            if "rope_type" in value or "type" in value:
                yield value
            yield from _rope_scalings(value)


def context_length(config: ModelConfig, max_model_len: int | None) -> int:
    limit = position_limit(config)
    if max_model_len is None and limit is None:
        raise ModelError("config.json names no context length; give max_model_len.")
    if max_model_len is None:
        assert limit is not None
        return limit
    if limit is not None and max_model_len > limit:
        raise ModelError(
            f"max_model_len={max_model_len} exceeds the {limit} positions that "
            f"{config.architecture} covers on the transformers path; lower it."
        )
    return max_model_len
