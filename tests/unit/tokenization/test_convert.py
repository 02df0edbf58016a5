"""Old tokenizer files are converted once."""

import json
from pathlib import Path

import pytest

from tests.unit.tokenization.tiny_tokenizers import byte_level
from tokasaurus.errors import ModelError
from tokasaurus.tokenization import convert
from tokasaurus.tokenization.tokenizer import Tokenizer


def write_old_files(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    byte_level().model.save(str(folder))
    assert (folder / "vocab.json").is_file()


def test_converts_once_and_again_when_files_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def stand_in(folder: Path, target: Path) -> None:
        calls.append(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        byte_level().save(str(target))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(convert, "_convert_in_subprocess", stand_in)
    write_old_files(tmp_path / "model")
    first = convert.converted_tokenizer_file(tmp_path / "model")
    assert convert.converted_tokenizer_file(tmp_path / "model") == first
    assert first.is_relative_to(tmp_path / "cache")
    assert len(calls) == 1
    tokenizer = Tokenizer.load(tmp_path / "model")
    assert tokenizer.decode(tokenizer.encode("fib")) == "fib"
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps({"x": 1}))
    assert convert.converted_tokenizer_file(tmp_path / "model") != first
    assert len(calls) == 2


def test_nothing_to_convert(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"neither tokenizer\.json nor"):
        convert.converted_tokenizer_file(tmp_path)
