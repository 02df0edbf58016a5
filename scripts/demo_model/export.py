"""Writes a trained model as a Hugging Face folder, atomically file by file."""

import copy
import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from demo_model.tokenizer import END_OF_TEXT, IM_END, save_tokenizer


def _model_config(model: LlamaForCausalLM, tokenizer: Tokenizer) -> dict[str, object]:
    config = model.config
    end_of_text, im_end = tokenizer.token_to_id(END_OF_TEXT), tokenizer.token_to_id(IM_END)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": [im_end, end_of_text],
        "pad_token_id": end_of_text,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def export(model: LlamaForCausalLM, tokenizer: Tokenizer, card: str, folder: Path) -> None:
    """Replaces the folder's checkpoint files; each appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as name:
        staging = Path(name)
        config = _model_config(model, tokenizer)
        _write_json(staging / "config.json", config)
        generation = {
            "eos_token_id": config["eos_token_id"],
            "pad_token_id": config["pad_token_id"],
            "do_sample": False,
        }
        _write_json(staging / "generation_config.json", generation)
        save_tokenizer(tokenizer, staging, model.config.max_position_embeddings)
        weights = {
            key: value.detach().to(torch.bfloat16).contiguous()
            for key, value in copy.copy(model.state_dict()).items()
            if key != "lm_head.weight"
        }
        save_file(weights, staging / "model.safetensors", metadata={"format": "pt"})
        (staging / "README.md").write_text(card, encoding="utf-8")
        for path in sorted(staging.iterdir()):
            path.chmod(0o644)
            path.replace(folder / path.name)
