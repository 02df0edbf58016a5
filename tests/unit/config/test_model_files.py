"""Finding a model's folder and reading what its config files say."""

import json
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects

from tokasaurus.config import model_files
from tokasaurus.config.model_files import read_model_config, resolve_model
from tokasaurus.demo_model import DEMO_MODEL_DIR
from tokasaurus.errors import ModelError


def write(folder: Path, **values: object) -> Path:
    defaults = {"architectures": ["LlamaForCausalLM"], "vocab_size": 10, "model_type": "llama"}
    (folder / "config.json").write_text(json.dumps({**defaults, **values}))
    return folder


def test_demo_and_folders_need_no_network(tmp_path: Path) -> None:
    assert resolve_model("demo") == DEMO_MODEL_DIR
    assert resolve_model(str(write(tmp_path))) == tmp_path


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("", "empty"),
        ("./nowhere", "hub id"),
        ("/no/such/folder", "hub id"),
        ("a/b/c", "hub id"),
        (__file__, "is a file"),
        (str(Path(__file__).parent), "no config.json"),
    ],
)
def test_wrong_names_say_what_they_are(model: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        resolve_model(model)


class Response:
    headers: dict[str, str] = {}
    status_code = 403
    request = None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (LocalEntryNotFoundError("offline"), "can't be reached"),
        (OSError("no route to host"), "no route to host"),
        (RepositoryNotFoundError("404", response=Response()), "no public model"),
        (GatedRepoError("403", response=Response()), "gated"),
    ],
)
def test_hub_failures_say_what_to_do(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match=reason):
        resolve_model("owner/name")


def test_hub_ids_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(tmp_path))
    assert resolve_model("owner/name-1.5_x") == tmp_path


def test_eos_ids_of_both_files(tmp_path: Path) -> None:
    write(tmp_path, eos_token_id=2, bos_token_id=1, max_position_embeddings=64)
    generation = {"eos_token_id": [2, 7], "temperature": 0.6}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    config = read_model_config(tmp_path)
    assert config.eos_token_ids == (2, 7)
    assert config.bos_token_id == 1
    assert config.max_position_embeddings == 64
    assert config.generation["temperature"] == 0.6


def test_silent_configs(tmp_path: Path) -> None:
    config = read_model_config(write(tmp_path, eos_token_id=None, n_positions=32))
    assert (config.eos_token_ids, config.bos_token_id, config.dtype) == ((), None, None)
    assert (config.max_position_embeddings, config.generation) == (32, {})


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_dtype_under_both_names(tmp_path: Path, key: str) -> None:
    assert read_model_config(write(tmp_path, **{key: "bfloat16"})).dtype == "bfloat16"


def test_text_values_of_nested_configs(tmp_path: Path) -> None:
    text = {"vocab_size": 99, "max_position_embeddings": 5, "eos_token_id": 3}
    config = read_model_config(write(tmp_path, vocab_size=None, text_config=text))
    assert (config.vocab_size, config.max_position_embeddings) == (99, 5)
    assert config.eos_token_ids == (3,)


@pytest.mark.parametrize(
    "content", ["", "[1]", "{", '{"vocab_size": 3}', '{"architectures": ["X"]}']
)
def test_broken_configs_are_model_errors(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        read_model_config(tmp_path)


def test_no_config_at_all(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="missing"):
        read_model_config(tmp_path)


def test_what_is_downloaded() -> None:
    wanted = [
        "1_Pooling/config.json",
        "config.json",
        "model-00001-of-00002.safetensors",
        "tokenizer.json",
    ]
    unwanted = [
        "16bit/model.safetensors",
        "consolidated.safetensors",
        "onnx/config.json",
        "original/params.json",
        "pytorch_model.bin",
    ]
    kept = filter_repo_objects(
        [*wanted, *unwanted],
        allow_patterns=model_files._WANTED,
        ignore_patterns=model_files._UNWANTED,
    )
    assert list(kept) == wanted
