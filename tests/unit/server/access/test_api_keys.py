"""Where keys come from, and which are accepted."""

from pathlib import Path

import pytest

from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.errors import ConfigError
from tokasaurus.server.access.api_keys import ENVIRONMENT_VARIABLE, ApiKeys, read_api_keys


@pytest.fixture(autouse=True)
def _no_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)


def test_any_of_the_keys_is_accepted() -> None:
    keys = ApiKeys(["one", "two"])
    assert keys.accepts(b"one")
    assert keys.accepts(b"two")
    for wrong in (b"", b"on", b"one ", b"ONE", b"onetwo", b"\xff"):
        assert not keys.accepts(wrong)


def test_without_keys_there_are_none() -> None:
    assert not read_api_keys(EngineConfig())


def test_all_sources_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("# for the team\n\n  from-file \nother\n")
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "from-environment")
    config = EngineConfig.from_args(["api_key=[a,b]", f"api_key_file={file}"])
    keys = read_api_keys(config)
    for key in (b"a", b"b", b"from-file", b"other", b"from-environment"):
        assert keys.accepts(key)
    assert not keys.accepts(b"# for the team")


def test_one_key_needs_no_brackets() -> None:
    keys = read_api_keys(EngineConfig.from_args(["api_key=secret"]))
    assert keys.accepts(b"secret")
    assert not keys.accepts(b"s")


@pytest.mark.parametrize("text", ["", "  ", "[a,]", "[]x", "schlüssel"])
def test_keys_that_would_let_everyone_or_nobody_in(text: str) -> None:
    config = EngineConfig(api_key=["a", ""] if text == "[a,]" else text)
    if text == "[]x":
        assert read_api_keys(config).accepts(b"[]x")
        return
    with pytest.raises(ConfigError):
        read_api_keys(config)


def test_files_without_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        read_api_keys(EngineConfig(api_key_file=str(tmp_path / "none")))
    file = tmp_path / "keys"
    file.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="holds no key"):
        read_api_keys(EngineConfig(api_key_file=str(file)))
