"""A tiny random Llama checkpoint, and a runner over it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.models import load, started_runner
from tokasaurus.worker.torch_runner import RunnerSettings, TorchRunner

VOCAB_SIZE = 211
PAGE_SIZE = 4


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.4,
        tie_word_embeddings=False,
    )
    folder = tmp_path_factory.mktemp("llama")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reference(llama_dir: Path) -> transformers.LlamaForCausalLM:
    model: Any = transformers.LlamaForCausalLM.from_pretrained(llama_dir)
    return model.eval().float()


@pytest.fixture(scope="session")
def make_runner(llama_dir: Path) -> Callable[..., TorchRunner]:
    def make(**settings: Any) -> TorchRunner:
        arguments = {
            "device": torch.device("cpu"),
            "attention_backend": "torch",
            "page_size": PAGE_SIZE,
            "kv_cache_num_tokens": 1024,
            "max_tokens_per_forward": 64,
            "max_seqs_per_forward": 8,
            **settings,
        }
        return started_runner(RunnerSettings(**arguments), lambda: load(llama_dir))

    return make
