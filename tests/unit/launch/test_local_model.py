"""The model is on this machine before processes start; errors come at once."""

from pathlib import Path

import pytest

from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.errors import ModelError
from tokasaurus.launch import local_model


def test_demo_and_folders_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["X"], "vocab_size": 4}')
    for model in ("demo", str(tmp_path)):
        config = EngineConfig(model=model)
        assert local_model.localize_model(config) == config


def test_hub_ids_become_folders_under_their_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["X"], "vocab_size": 4}')
    monkeypatch.setattr(local_model, "resolve_model", lambda model: tmp_path)
    config = local_model.localize_model(EngineConfig(model="own/er", tokenizer="own/tok"))
    assert config.model == config.tokenizer == str(tmp_path)
    assert config.public_model_name == "own/er"


def test_broken_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json"):
        local_model.localize_model(EngineConfig(model=str(tmp_path)))
    with pytest.raises(ModelError, match="no folder"):
        local_model.localize_model(EngineConfig(model=str(tmp_path / "none")))
