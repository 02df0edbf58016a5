"""Folders with the config.json of a real model's shape and a tokenizer, but no weights."""

import json
from pathlib import Path
from typing import Any

from make_bench_model import SHAPES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig

QUICK_SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}


def model_folder(name: str, parent: Path, *, quick: bool) -> Path:
    """For `load_format=dummy`."""
    folder = parent / "models" / (f"{name}-quick" if quick else name)
    if (folder / "config.json").exists():
        return folder
    shape = QUICK_SHAPE if quick else SHAPES[name]
    config = AutoConfig.for_model(**shape, bos_token_id=1, eos_token_id=2, pad_token_id=2)
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = "float32" if quick else "bfloat16"
    folder.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(folder, shape["vocab_size"])
    (folder / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    return folder


def _write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Bytes, and names for the other ids: it only has to turn any id into text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<unk>", "<s>", "</s>"]
    names = special + alphabet
    names += [f"word{i}" for i in range(vocab_size - len(names))]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
