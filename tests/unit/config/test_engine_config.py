"""EngineConfig can't be malformed, however it is filled."""

import subprocess
import sys
from typing import Any

import pydra
import pytest

from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.config.strict_config import StrictConfig, format_help
from tokasaurus.errors import ConfigError


def test_no_arguments_serve_the_demo_model() -> None:
    config = EngineConfig.from_args([])
    assert config == EngineConfig()
    assert (config.model, config.host, config.port) == ("demo", "127.0.0.1", 10210)
    assert config.public_model_name == "demo"


def test_key_value_arguments() -> None:
    config = EngineConfig.from_args(
        [
            "model=1e3",
            "port=1",
            "port=0",
            "debug_checks=false",
            "chat_template=a=b",
            "dtype=float32",
        ]
    )
    assert config.model == "1e3"
    assert config.port == 0
    assert config.debug_checks is False
    assert config.chat_template == "a=b"
    assert EngineConfig.from_args(["served_model_name=x"]).public_model_name == "x"


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("max_model_ln=5", "did you mean max_model_len"),
        ("zzzz=1", "known: model,"),
        ("model", "key=value"),
        ("--port=1", "did you mean port"),
        ("port=3.7", "port must be a whole number, not '3.7'"),
        ("port=(__import__('os'))", "port must be a whole number"),
        ("dtype=int8", "one of auto, bfloat16"),
        ("debug_checks=maybe", "True or False"),
        ("port=70000", "between 0 and 65535"),
        ("page_size=0", "at least 1"),
        ("kv_cache_memory_fraction=1.5", "at most 1"),
        ("ready_timeout_seconds=0", "above 0"),
        ("step_timeout_seconds=0", "above 0"),
        ("tp_size=0", "tp_size must be at least 1"),
        ("pp_size=0", "pp_size must be at least 1"),
        ("cpu_threads=257", "cpu_threads must be at most 256"),
        ("model=", "must not be empty"),
        ("max_tokens_per_forward=10", "at least max_seqs_per_forward"),
        ("kv_cache_num_tokens=15", "at least one block"),
        ("quantization=int3", "one of none, int8"),
        ("quantization_group_size=64", "no effect without quantization=int4_weight_only"),
    ],
)
def test_bad_argument_is_a_sentence(arg: str, message: str) -> None:
    with pytest.raises(ConfigError, match="(?s)" + message.replace("(", r"\(")):
        EngineConfig.from_args([arg])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda"}, "runs on CPUs alone; set device=cpu"),
        ({"cpu_kernels": False}, "needs the CPU kernels; set cpu_kernels=T"),
        ({"attention_backend": "torch"}, "attention_backend=cpu or leave"),
        ({"quantization_group_size": 48}, "32, 64 or 128, not 48"),
    ],
)
def test_quantization_says_what_it_needs(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig(quantization="int4_weight_only", **options).validate()


def test_python_construction_is_as_strict() -> None:
    config = EngineConfig(model="m", port=5)
    assert (config.model, config.port) == ("m", 5)
    unknown: dict[str, Any] = {"modle": "m"}
    with pytest.raises(ConfigError, match="did you mean model"):
        EngineConfig(**unknown)
    with pytest.raises(ConfigError, match="did you mean port"):
        config.prot = 5
    with pytest.raises(ConfigError, match="port must be a whole number"):
        config.port = 3.7  # type: ignore[assignment]
    assert config.port == 5


def test_pydra_itself_gets_no_looser_way_in() -> None:
    config = EngineConfig()
    pydra.apply_overrides(config, ["port=7"])
    assert config.port == 7
    with pytest.raises(ConfigError):
        pydra.apply_overrides(config, ["port=3.7"])
    with pytest.raises(ConfigError):
        pydra.apply_overrides(config, ["debug_checks='false'"])


def test_json_round_trip() -> None:
    config = EngineConfig(model="ünï", kv_cache_num_tokens=64, debug_checks=True)
    copy = EngineConfig.from_json(config.to_json())
    assert copy == config
    assert copy.replace(port=3) != config
    assert config.replace(port=config.port) == config


def test_every_option_is_documented_and_in_the_help() -> None:
    options = EngineConfig.options()
    assert next(iter(options)) == "model"
    text = format_help(options.values())
    for option in options.values():
        assert option.help, f"{option.name} has no doc string"
        assert f"{option.name}={option.default}\n" in text
        assert option.help.split()[0] in text
    EngineConfig().validate()


def test_options_are_inherited() -> None:
    class Extended(EngineConfig):
        extra: list[int] = []
        """An extra one."""

    assert Extended.options()["extra"].help == "An extra one."
    assert Extended.from_args(["extra=[1,2]", "port=3"]).extra == [1, 2]
    assert "extra" not in EngineConfig.options()


def test_repr_shows_what_was_changed() -> None:
    assert repr(EngineConfig(port=1)) == "EngineConfig(port=1)"


def test_lists_are_not_shared_between_configs() -> None:
    class WithList(StrictConfig):
        items: list[str] = []

    first = WithList()
    first.items.append("x")
    assert WithList().items == []


def test_config_needs_no_torch() -> None:
    code = (
        "import sys, tokasaurus.config.engine_config; "
        "sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["async_tp_threshold=512"], "no effect without tp_size"),
        (["async_tp_threshold=512", "tp_size=2", "device=cpu"], "needs GPUs"),
        (["async_tp_threshold=512", "tp_size=2", "torch_compile=T"], "can't be combined"),
        (["async_tp_threshold=256", "tp_size=2"], "above cudagraph_max_size"),
        (["async_tp_threshold=0", "tp_size=2"], "at least 1"),
    ],
)
def test_async_tp_is_refused_where_it_can_not_be(options: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        EngineConfig.from_args(options)
    EngineConfig.from_args(["async_tp_threshold=512", "tp_size=2", "pp_size=2"])
