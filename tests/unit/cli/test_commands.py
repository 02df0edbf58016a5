"""The commands' arguments, help and errors; toka itself stays light."""

import subprocess
import sys
from collections.abc import Callable

import pytest

import tokasaurus
from tokasaurus.cli import toka, toka_download, toka_ping
from tokasaurus.cli.toka_download import DownloadConfig
from tokasaurus.cli.toka_ping import PingConfig
from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.config.strict_config import StrictConfig
from tokasaurus.errors import ConfigError

COMMANDS = [
    ("toka", toka.main, EngineConfig),
    ("toka-ping", toka_ping.main, PingConfig),
    ("toka-download", toka_download.main, DownloadConfig),
]
Main = Callable[[list[str]], int]


@pytest.mark.parametrize(("name", "main", "config_type"), COMMANDS)
def test_help_lists_every_option(
    name: str, main: Main, config_type: type[StrictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: {name} ")
    for option in config_type.options().values():
        assert f"\n  {option.name}={option.default}\n" in out
        assert option.help


@pytest.mark.parametrize(("name", "main", "config_type"), COMMANDS)
def test_version(
    name: str, main: Main, config_type: type[StrictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{name} {tokasaurus.__version__}\n"


@pytest.mark.parametrize(("name", "main", "config_type"), COMMANDS)
def test_unknown_option_is_one_line_and_exit_1(
    name: str, main: Main, config_type: type[StrictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["modle=x"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"{name}: ")
    assert "did you mean model" in err
    assert err.count("\n") == 1


def test_a_prompt_may_look_like_anything() -> None:
    assert PingConfig.from_args(["prompt=(1+1)=2"]).prompt == "(1+1)=2"
    assert PingConfig.from_args(["prompt=--help"]).prompt == "--help"


@pytest.mark.parametrize(
    ("args", "url"),
    [
        ([], "http://127.0.0.1:10210"),
        (["port=5", "host=box"], "http://box:5"),
        (["url=https://box/v1/"], "https://box"),
    ],
)
def test_ping_target(args: list[str], url: str) -> None:
    assert PingConfig.from_args(args).server_url == url


@pytest.mark.parametrize("arg", ["max_tokens=0", "url=box:5", "timeout_seconds=0"])
def test_ping_refuses(arg: str) -> None:
    with pytest.raises(ConfigError, match=arg.split("=")[0]):
        PingConfig.from_args([arg])


@pytest.mark.parametrize(("arg", "words"), [("model=", "hub id"), ("model=demo", "no download")])
def test_download_refuses(arg: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DownloadConfig.from_args([arg])


def test_toka_imports_nothing_heavy() -> None:
    code = (
        "import sys, tokasaurus.cli.toka; "
        "heavy = {'torch', 'transformers', 'fastapi', 'openai', 'tokenizers', 'huggingface_hub'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
