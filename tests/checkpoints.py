"""Tiny random checkpoints of every family, in Hugging Face format with a tokenizer.

Weights are float32 and large enough that greedy decoding wanders instead of repeating one token.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

EOS, BOS, PAD = "<|eos|>", "<|bos|>", "<|pad|>"
_SPECIAL = (PAD, BOS, EOS, "<|user|>", "<|assistant|>", "<|system|>")
EOS_ID, BOS_ID, PAD_ID = 2, 1, 0
VOCAB_SIZE = 384

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}" + EOS + "\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_TEXT = """The quick brown fox jumps over the lazy dog. Hello world, how are you today?
def add(a, b):\n    return a + b\nfor i in range(10):\n    print(i)\n
Prompts share prefixes, and prefixes are computed once. Ünïcödé, 日本語 and emoji 🙂 too."""

_DECODER: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
_MOE = {**_DECODER, "num_hidden_layers": 2, "num_experts_per_tok": 2}
_FALCON = {
    key: value
    for key, value in _DECODER.items()
    if key not in ("intermediate_size", "num_key_value_heads", "tie_word_embeddings")
}
_ROPE = {"rope_theta": 10000.0}


def _rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, **_ROPE, **parameters}}


NATIVE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _DECODER),
    "llama_tied": ("LlamaConfig", {**_DECODER, "tie_word_embeddings": True, "head_dim": 32}),
    "llama_biases": ("LlamaConfig", {**_DECODER, "attention_bias": True, "mlp_bias": True}),
    "llama_gelu": ("LlamaConfig", {**_DECODER, "hidden_act": "gelu_pytorch_tanh"}),
    "llama_linear": ("LlamaConfig", {**_DECODER, **_rope("linear", factor=4.0)}),
    "llama_dynamic": ("LlamaConfig", {**_DECODER, **_rope("dynamic", factor=4.0)}),
    "llama_yarn": (
        "LlamaConfig",
        {**_DECODER, **_rope("yarn", factor=8.0, original_max_position_embeddings=64)},
    ),
    "llama3": (
        "LlamaConfig",
        {
            **_DECODER,
            **_rope(
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        },
    ),
    "mistral": ("MistralConfig", {**_DECODER, "sliding_window": 24}),
    "mistral_full": ("MistralConfig", {**_DECODER, "sliding_window": None}),
    "qwen2": ("Qwen2Config", _DECODER),
    "qwen2_window": (
        "Qwen2Config",
        {**_DECODER, "use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {**_DECODER, "head_dim": 32, "tie_word_embeddings": True}),
    "phi3": ("Phi3Config", {**_DECODER, "sliding_window": 48}),
    "phi3_longrope": (
        "Phi3Config",
        {
            **_DECODER,
            "original_max_position_embeddings": 128,
            **_rope(
                "longrope",
                partial_rotary_factor=0.75,
                short_factor=[1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
                long_factor=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            ),
        },
    ),
    "falcon_7b": (
        "FalconConfig",
        {**_FALCON, "multi_query": True, "parallel_attn": True},
    ),
    "falcon_40b": (
        "FalconConfig",
        {
            **_FALCON,
            "tie_word_embeddings": False,
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "bias": True,
        },
    ),
    "falcon_11b": (
        "FalconConfig",
        {
            **_FALCON,
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "num_ln_in_parallel_attn": 1,
        },
    ),
    "falcon_sequential": (
        "FalconConfig",
        {**_FALCON, "multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "mixtral": ("MixtralConfig", {**_MOE, "num_local_experts": 4, "sliding_window": 24}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {
            **_MOE,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "shared_expert_intermediate_size": 56,
        },
    ),
    "qwen2_moe_mixed": (
        "Qwen2MoeConfig",
        {
            **_MOE,
            "num_hidden_layers": 4,
            "num_experts": 4,
            "norm_topk_prob": True,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 48,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "use_sliding_window": True,
            "sliding_window": 20,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {
            **_MOE,
            "num_hidden_layers": 3,
            "num_experts": 5,
            "norm_topk_prob": True,
            "moe_intermediate_size": 48,
            "head_dim": 32,
            "mlp_only_layers": [1],
        },
    ),
}
"""Families and variants that the native decoder runs: config class and arguments."""

TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": VOCAB_SIZE,
            "n_embd": 64,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 512,
            "scale_attn_by_inverse_layer_idx": True,
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", _DECODER),
    "opt": (
        "OPTConfig",
        {**_DECODER, "ffn_dim": 96, "word_embed_proj_dim": 32, "do_layer_norm_before": True},
    ),
    "phi": ("PhiConfig", _DECODER),
    "gemma": ("GemmaConfig", {**_DECODER, "head_dim": 32}),
    "gemma2": (
        "Gemma2Config",
        {
            **_DECODER,
            "head_dim": 32,
            "sliding_window": 24,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 8.0,
            "query_pre_attn_scalar": 20,
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            **_DECODER,
            "head_dim": 32,
            "sliding_window": 24,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gpt_oss": (
        "GptOssConfig",
        {
            **_MOE,
            "head_dim": 16,
            "num_local_experts": 4,
            "sliding_window": 24,
            "layer_types": ["sliding_attention", "full_attention"],
            **_rope("yarn", factor=8.0, original_max_position_embeddings=64, truncate=False),
        },
    ),
    "olmo": ("OlmoConfig", _DECODER),
    "olmo2": ("Olmo2Config", _DECODER),
}
"""Architectures that run through transformers."""

REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("BloomConfig", {"vocab_size": VOCAB_SIZE, "hidden_size": 64, "n_layer": 2}),
    "mpt": (
        "MptConfig",
        {"vocab_size": VOCAB_SIZE, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    ),
    "falcon_alibi": ("FalconConfig", {**_FALCON, "alibi": True}),
}
"""Architectures that can't be run."""

ALL = {**NATIVE, **TRANSFORMERS, **REFUSED}


def make_checkpoint(family: str, directory: Path, **overrides: Any) -> Path:
    """A folder below `directory` with the family's config (overridden), weights and tokenizer.

    Made once per directory and set of overrides, so a session can share one directory.
    """
    suffix = "".join(f"-{key}={value}" for key, value in sorted(overrides.items()))
    folder = directory / f"{family}{suffix}".replace("/", "_").replace(" ", "")[:120]
    if (folder / "tokenizer_config.json").is_file():
        return folder
    import transformers

    config_name, arguments = ALL[family]
    ids = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
    config = getattr(transformers, config_name)(**{**arguments, **ids, **overrides})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _spread_weights(model, _NOISE_SEEDS.get(family, 1))
    model.generation_config.eos_token_id = EOS_ID
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


_NOISE_SEEDS = {"mixtral": 2, "qwen2_moe": 4, "qwen2_moe_mixed": 8, "gpt_oss": 4}
"""Where others than 1: with these, no token of `mixed_prompts` is between two experts by less than
2e-5 (of a probability), so that no machine's rounding chooses another one."""


def _spread_weights(model: torch.nn.Module, seed: int) -> None:
    """Random norms, biases and sinks too: a family that ignored one would show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in dict(model.named_parameters()).values():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * 0.15)
            else:
                parameter.add_(noise * 0.2)


@cache
def _tokenizer_json() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT] * 4, trainer)
    return tokenizer.to_str()


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer with special tokens and a chat template."""
    (folder / "tokenizer.json").write_text(_tokenizer_json(), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
