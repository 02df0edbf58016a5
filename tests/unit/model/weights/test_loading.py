"""A decoder filled from checkpoints that are right, sharded, incomplete or foreign."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.checkpoints import make_checkpoint
from tokasaurus.errors import ModelError
from tokasaurus.model.decoder import Decoder
from tokasaurus.model.registry import LoadFormat, load_model


def load(folder: Path, load_format: LoadFormat = "auto", dtype: str = "float32") -> Decoder:
    fractions: list[float] = []
    model = load_model(
        folder,
        dtype=dtype,
        device=torch.device("cpu"),
        model_path="native",
        load_format=load_format,
        max_model_len=None,
        progress=lambda fraction, text: fractions.append(fraction),
    )
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1.0, abs=0.1)
    assert isinstance(model, Decoder)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint("llama", tmp_path)


def edit(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace or (None) drop tensors; `__` in a name stands for a dot."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    path.unlink()
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, path)


def test_fused_weights_hold_the_checkpoints_rows(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    layer = load(folder).layers[1]
    prefix = "model.layers.1."
    qkv = torch.cat([tensors[f"{prefix}self_attn.{name}_proj.weight"] for name in "qkv"])
    gate_up = torch.cat([tensors[f"{prefix}mlp.{name}_proj.weight"] for name in ("gate", "up")])
    assert torch.equal(layer.attention.qkv.weight, qkv)
    assert torch.equal(layer.mlp.gate_up.weight, gate_up)


def test_sharded_checkpoints_load_alike(folder: Path) -> None:
    expected = load(folder).state_dict()
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    weight_map = {name: file for file, held in shards.items() for name in held}
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    actual = load(folder).state_dict()
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())
    (folder / "b.safetensors").unlink()
    with pytest.raises(ModelError, match=r"b\.safetensors is missing"):
        load(folder)
    index.write_text("{}")
    with pytest.raises(ModelError, match="broken"):
        load(folder)
    index.write_text(json.dumps({"weight_map": {"x": "../../secret"}}))
    with pytest.raises(ModelError, match="outside its folder"):
        load(folder)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_experts_load_from_one_tensor_as_from_many(family: str, tmp_path: Path) -> None:
    folder = make_checkpoint(family, tmp_path)
    expected = load(folder).state_dict()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    shutil.copytree(folder, tmp_path / "stacked")
    model.save_pretrained(tmp_path / "stacked", save_original_format=False)
    names = load_file(tmp_path / "stacked" / "model.safetensors")
    assert "model.layers.0.mlp.experts.gate_up_proj" in names
    actual = load(tmp_path / "stacked").state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    folder = make_checkpoint("qwen3_moe", tmp_path)
    edit(folder, model__layers__2__mlp__experts__3__up_proj__weight=None)
    with pytest.raises(ModelError, match=r"model\.layers\.2\.mlp\.experts\.3\.up_proj\.weight"):
        load(folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    edit(folder, model__layers__2__mlp__up_proj__weight=None)
    with pytest.raises(ModelError, match=r"model\.layers\.2\.mlp\.up_proj\.weight"):
        load(folder)


def test_an_unexpected_tensor_is_named(folder: Path) -> None:
    edit(folder, model__layers__0__self_attn__q_proj__bias=torch.ones(64))
    with pytest.raises(ModelError, match=r"model\.layers\.0\.self_attn\.q_proj\.bias"):
        load(folder)


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    edit(folder, model__layers__0__self_attn__k_proj__weight=torch.ones(64, 64))
    with pytest.raises(ModelError, match=r"self_attn\.k_proj\.weight.*\(64, 64\).*\(32, 64\)"):
        load(folder)


def test_old_rotary_buffers_are_ignored(folder: Path) -> None:
    edit(folder, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8))
    load(folder)


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    folder = make_checkpoint("llama_tied", tmp_path)
    edit(folder, lm_head__weight=torch.zeros(384, 64))
    model = load(folder)
    assert model.head.weight is model.embedding.weight
    assert model.head.weight.abs().sum() > 0


def test_pickled_weights_are_refused_with_advice(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled.*save_pretrained"):
        load(folder)


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="load_format=dummy"):
        load(folder)


def test_dummy_weights_need_no_file_and_repeat(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    first, second = load(folder, "dummy"), load(folder, "dummy")
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a.isfinite().all(), name
    assert first.layers[0].attention.qkv.weight.std() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(("dtype", "expected"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_dtype(dtype: str, expected: str, folder: Path) -> None:
    model = load(folder, dtype=dtype)
    assert str(model.dtype) == f"torch.{expected}"
    assert {parameter.dtype for parameter in model.parameters()} == {model.dtype}


def test_auto_dtype_is_the_weights_when_the_config_is_silent(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    values.pop("dtype")
    (folder / "config.json").write_text(json.dumps(values))
    path = folder / "model.safetensors"
    tensors = {name: tensor.half() for name, tensor in load_file(path).items()}
    path.unlink()
    save_file(tensors, path)
    assert load(folder, dtype="auto").dtype == torch.float16
