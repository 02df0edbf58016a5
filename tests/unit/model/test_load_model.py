"""Which implementation runs a folder, and how refusals read."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.checkpoints import make_checkpoint
from tokasaurus.errors import ConfigError, ModelError
from tokasaurus.model.attention.backend import CausalModel
from tokasaurus.model.parallel import ParallelContext, RankGroup
from tokasaurus.model.registry import ModelPath


def load(folder: Path, model_path: ModelPath = "auto", **options: Any) -> CausalModel:
    """With a dtype of its own and random weights, unless told otherwise."""
    return models.load(folder, model_path, **{"dtype": "auto", "load_format": "dummy", **options})


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_auto_prefers_the_native_decoder(tmp_path: Path) -> None:
    folder = make_checkpoint("llama", tmp_path)
    model = load(folder)
    assert model.path == "native llama"
    assert (model.vocab_size, model.max_model_len) == (384, 512)
    assert [layer.index for layer in model.attention_layers] == [0, 1, 2]
    assert load(folder, "transformers").path == "transformers LlamaForCausalLM"
    assert load(folder, max_model_len=100).max_model_len == 100


def test_auto_takes_transformers_for_what_native_does_not_cover(tmp_path: Path) -> None:
    folder = make_checkpoint("llama", tmp_path)
    edit_config(folder, something_new=1)
    assert load(folder).path == "transformers LlamaForCausalLM"
    with pytest.raises(ModelError, match="something_new=1"):
        load(folder, "native")


@pytest.mark.parametrize("model_path", ["native", "transformers"])
def test_a_context_beyond_the_positions_is_refused(tmp_path: Path, model_path: ModelPath) -> None:
    folder = make_checkpoint("llama", tmp_path)
    with pytest.raises(ModelError, match=r"max_model_len=513.*512"):
        load(folder, model_path, max_model_len=513)


def test_native_only_lists_the_families(tmp_path: Path) -> None:
    folder = make_checkpoint("gpt2", tmp_path)
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel.*LlamaForCausalLM"):
        load(folder, "native")


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("NoSuchForCausalLM", "no causal language model"),
        ("BertModel", "no causal language model"),
        ("GPTJForCausalLM", "attention interface"),
        ("MambaForCausalLM", "attention interface"),
    ],
)
def test_refusals_say_why_and_what_works(tmp_path: Path, architecture: str, reason: str) -> None:
    folder = make_checkpoint("llama", tmp_path)
    edit_config(folder, architectures=[architecture])
    with pytest.raises(ModelError, match=rf"{reason}.*LlamaForCausalLM.*GptOssForCausalLM"):
        load(folder)


@pytest.mark.parametrize(
    "changes", [{"is_encoder_decoder": True}, {"vision_config": {"hidden_size": 8}}]
)
def test_encoders_and_images_are_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    folder = make_checkpoint("gpt_neox", tmp_path)
    edit_config(folder, **changes)
    with pytest.raises(ModelError, match=r"encoder|multimodal"):
        load(folder)


def test_transformers_path_names_missing_weights(tmp_path: Path) -> None:
    folder = make_checkpoint("gpt_neox", tmp_path)
    edit_config(folder, num_hidden_layers=4)
    with pytest.raises(ModelError, match=r"lacks .* tensors, among them .*layers\.3"):
        load(folder, load_format="auto")


def test_transformers_path_refuses_pickled_weights(tmp_path: Path) -> None:
    folder = make_checkpoint("gpt_neox", tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled"):
        load(folder, load_format="auto")


def test_a_dtype_that_cannot_run_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint("llama", tmp_path)
    with pytest.raises(ConfigError, match="choose one of bfloat16, float16, float32"):
        load(folder, dtype="float8")


@pytest.mark.parametrize(
    ("family", "parallel", "reason"),
    [
        ("llama", ParallelContext(tp=RankGroup(0, 3)), "4 attention heads over 2 KV heads.*3"),
        ("llama", ParallelContext(tp=RankGroup(1, 64)), "tp_size=64"),
        ("llama", ParallelContext(pp_rank=3, pp_size=4), "3 layers .* pp_size=4"),
        ("gpt2", ParallelContext(tp=RankGroup(0, 2)), "GPT2LMHeadModel would run .* dp_size"),
        ("gpt2", ParallelContext(pp_size=2), "GPT2LMHeadModel would run .* dp_size"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    tmp_path: Path, family: str, parallel: ParallelContext, reason: str
) -> None:
    folder = make_checkpoint(family, tmp_path)
    with pytest.raises(ConfigError, match=reason):
        load(folder, parallel=parallel)
