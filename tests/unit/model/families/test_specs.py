"""Specs read from config.json as the families' publishers write it."""

from pathlib import Path
from typing import Any

import pytest

from tokasaurus.config.model_files import ModelConfig
from tokasaurus.errors import ModelError
from tokasaurus.model.config import DecoderSpec, MoESpec, UnsupportedFeatureError
from tokasaurus.model.registry import FAMILIES, read_family_spec

SMALL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "eos_token_id": 2,
}
FALCON = {
    key: value
    for key, value in SMALL.items()
    if key not in ("intermediate_size", "num_key_value_heads")
}


def read(architecture: str, values: dict[str, Any], **more: Any) -> DecoderSpec:
    config = ModelConfig(
        folder=Path("model"),
        architecture=architecture,
        model_type="",
        vocab_size=100,
        max_position_embeddings=None,
        eos_token_ids=(),
        bos_token_id=None,
        dtype=None,
        values={**values, **more},
        generation={},
    )
    return read_family_spec(FAMILIES[architecture], config)


def test_llama_3_1_in_the_form_of_transformers_4() -> None:
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }
    spec = read(
        "LlamaForCausalLM",
        SMALL,
        rope_scaling=scaling,
        rope_theta=500000.0,
        max_position_embeddings=131072,
    )
    assert spec.rope.kind == "llama3"
    assert spec.rope.theta == 500000.0
    assert spec.rope.original_positions == 8192
    assert spec.context_length(None) == 131072
    new_form = {**scaling, "rope_theta": 500000.0}
    assert spec == read(
        "LlamaForCausalLM", SMALL, rope_parameters=new_form, max_position_embeddings=131072
    )


def test_a_value_nobody_reads_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedFeatureError, match=r"residual_multiplier=0\.5"):
        read("LlamaForCausalLM", SMALL, residual_multiplier=0.5)
    read("LlamaForCausalLM", SMALL, some_switch=False, some_option=None)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "proportional", "factor": 2.0},
        {"rope_type": "linear", "factor": 2.0, "unheard_of": 1},
        {"rope_type": "default", "partial_rotary_factor": 0.5},
        {"type": "su", "short_factor": [1.0], "long_factor": [1.0]},
    ],
)
def test_unknown_rotary_scaling_is_refused(scaling: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedFeatureError):
        read("LlamaForCausalLM", SMALL, rope_scaling=scaling)


def test_an_unknown_activation_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedFeatureError, match="hidden_act='xielu'"):
        read("LlamaForCausalLM", SMALL, hidden_act="xielu")


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_size", "64"), ("num_hidden_layers", 0), ("vocab_size", None), ("head_dim", -1)],
)
def test_nonsense_is_a_model_error(key: str, value: object) -> None:
    with pytest.raises(ModelError, match=key):
        read("LlamaForCausalLM", SMALL, **{key: value})


@pytest.mark.parametrize(
    ("more", "window"), [({}, 4096), ({"sliding_window": None}, None), ({"sliding_window": 8}, 8)]
)
def test_mistral_windows(more: dict[str, Any], window: int | None) -> None:
    assert read("MistralForCausalLM", SMALL, **more).sliding_windows == (window,) * 4


@pytest.mark.parametrize(
    ("more", "windows"),
    [
        ({"sliding_window": 8}, (None,) * 4),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 4}, (None,) * 4),
        (
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
            (None, None, None, 8),
        ),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, (8,) * 4),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["full_attention", "sliding_attention"] * 2,
            },
            (None, 8, None, 8),
        ),
    ],
)
def test_qwen2_windows(more: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    spec = read("Qwen2ForCausalLM", SMALL, **more)
    assert spec.sliding_windows == windows
    assert spec.qkv_bias
    assert not spec.attention_out_bias


def test_qwen2_refuses_layers_of_another_kind() -> None:
    with pytest.raises(UnsupportedFeatureError, match="layer_types"):
        read("Qwen2ForCausalLM", SMALL, layer_types=["chunked_attention"] * 4)


def test_qwen3_heads_are_128_wide_unless_told() -> None:
    spec = read("Qwen3ForCausalLM", SMALL)
    assert (spec.head_dim, spec.qk_norm) == (128, True)


def test_phi3_serves_the_original_context_unless_asked() -> None:
    scaling = {"type": "su", "short_factor": [1.0] * 6, "long_factor": [2.0] * 6}
    spec = read(
        "Phi3ForCausalLM",
        SMALL,
        rope_scaling=scaling,
        partial_rotary_factor=0.75,
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        auto_map={"AutoConfig": "configuration_phi3.Phi3Config"},
        full_attn_mod=1,
    )
    assert (spec.rope.kind, spec.rope.rotary_dim) == ("longrope", 12)
    assert spec.context_length(None) == 4096
    assert spec.context_length(100_000) == 100_000
    with pytest.raises(ModelError, match="131072 positions"):
        spec.context_length(200_000)


@pytest.mark.parametrize(
    ("more", "block", "num_kv_heads"),
    [
        ({}, "parallel_shared_norm", 1),
        ({"parallel_attn": False}, "sequential", 1),
        ({"multi_query": False}, "parallel_shared_norm", 4),
        ({"new_decoder_architecture": True, "num_kv_heads": 2}, "parallel", 2),
        (
            {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
            "parallel_shared_norm",
            2,
        ),
    ],
)
def test_falcon_forms(more: dict[str, Any], block: str, num_kv_heads: int) -> None:
    spec = read("FalconForCausalLM", FALCON, **more)
    assert (spec.block, spec.num_kv_heads) == (block, num_kv_heads)
    assert spec.intermediate_size == 256
    assert spec.tie_embeddings


@pytest.mark.parametrize(
    "more",
    [
        {"alibi": True},
        {"num_ln_in_parallel_attn": 2},
        {"new_decoder_architecture": True, "parallel_attn": False},
    ],
)
def test_falcon_refuses_by_name(more: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedFeatureError, match=list(more)[-1]):
        read("FalconForCausalLM", FALCON, **more)


MOE = {
    **SMALL,
    "moe_intermediate_size": 48,
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.001,
}


def test_mixtral_as_published() -> None:
    spec = read(
        "MixtralForCausalLM",
        SMALL,
        num_local_experts=8,
        num_experts_per_tok=2,
        output_router_logits=False,
        router_aux_loss_coef=0.02,
        sliding_window=None,
        rope_theta=1000000.0,
        max_position_embeddings=32768,
    )
    assert spec.moe == MoESpec(
        num_experts=8,
        num_experts_per_token=2,
        intermediate_size=128,
        normalize_weights=True,
        layers=frozenset(range(4)),
    )
    assert read("MixtralForCausalLM", SMALL).rope.theta == 1e6


def test_qwen2_moe_as_published() -> None:
    spec = read(
        "Qwen2MoeForCausalLM",
        MOE,
        num_experts=60,
        shared_expert_intermediate_size=5632,
        norm_topk_prob=False,
        decoder_sparse_step=1,
        sliding_window=32768,
        use_sliding_window=False,
        max_window_layers=21,
        mlp_only_layers=[],
    )
    assert spec.moe is not None
    assert (spec.moe.num_experts, spec.moe.intermediate_size) == (60, 48)
    assert (spec.moe.shared_intermediate_size, spec.moe.normalize_weights) == (5632, False)
    assert spec.moe.layers == frozenset(range(4))
    assert spec.qkv_bias
    assert spec.sliding_windows == (None,) * 4
    assert spec.intermediate_size == 128


@pytest.mark.parametrize("key", ["num_experts", "num_local_experts"])
def test_qwen3_moe_as_published(key: str) -> None:
    spec = read(
        "Qwen3MoeForCausalLM",
        MOE,
        **{key: 16},
        norm_topk_prob=True,
        decoder_sparse_step=1,
        sliding_window=None,
        use_sliding_window=False,
        max_window_layers=48,
        mlp_only_layers=[],
        head_dim=128,
        qkv_bias=False,
        shared_expert_intermediate_size=0,
    )
    assert spec.moe is not None
    assert (spec.moe.num_experts, spec.moe.normalize_weights) == (16, True)
    assert spec.moe.shared_intermediate_size is None
    assert (spec.head_dim, spec.qk_norm, spec.qkv_bias) == (128, True, False)


@pytest.mark.parametrize(
    ("more", "layers"),
    [
        ({}, {0, 1, 2, 3}),
        ({"decoder_sparse_step": 2}, {1, 3}),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [3]}, {1}),
        ({"mlp_only_layers": [0, 2]}, {1, 3}),
        ({"decoder_sparse_step": 9}, set()),
    ],
)
@pytest.mark.parametrize("architecture", ["Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"])
def test_layers_with_experts(architecture: str, more: dict[str, Any], layers: set[int]) -> None:
    moe = read(architecture, MOE, **more).moe
    assert moe is not None
    assert moe.layers == layers


@pytest.mark.parametrize(
    ("architecture", "more"),
    [
        ("MixtralForCausalLM", {"num_local_experts": 2, "num_experts_per_tok": 3}),
        ("Qwen2MoeForCausalLM", {"use_sliding_window": True}),
        ("Qwen2MoeForCausalLM", {"layer_types": ["sliding_attention"] * 4}),
        ("Qwen3MoeForCausalLM", {"shared_expert_intermediate_size": 64}),
    ],
)
def test_mixtures_refuse_by_name(architecture: str, more: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedFeatureError, match=list(more)[-1]):
        read(architecture, MOE, **more)


def test_dense_layers_must_be_a_list_of_indices() -> None:
    with pytest.raises(ModelError, match="mlp_only_layers must be a list of indices"):
        read("Qwen3MoeForCausalLM", MOE, mlp_only_layers=[-1])
