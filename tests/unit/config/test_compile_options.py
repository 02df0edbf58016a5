"""torch_compile_config says one thing or is refused."""

import pytest

from tokasaurus.config.compile_options import CompileOptions, read_compile_options
from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.errors import ConfigError


def test_forms() -> None:
    expected = CompileOptions(options={"max_autotune": True, "triton.cudagraphs": False})
    texts = ["options.max_autotune=true", "options.triton.cudagraphs=false"]
    as_json = '{"options": {"max_autotune": true, "triton.cudagraphs": false}}'
    assert read_compile_options(texts) == read_compile_options(as_json) == expected
    assert read_compile_options(None) == CompileOptions()
    assert read_compile_options("backend=eager") == CompileOptions(backend="eager")
    mode = "max-autotune-no-cudagraphs"
    config = EngineConfig.from_args(["torch_compile=T", f"torch_compile_config=mode={mode}"])
    assert read_compile_options(config.torch_compile_config) == CompileOptions(mode=mode)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("mode", "is not key=value"),
        ("mode=fast", "choose one of default"),
        ("mode=reduce-overhead", "use_cudagraphs"),
        ("backend=tvm", "choose one of inductor"),
        ("moed=default", "did you mean mode"),
        (["mode=max-autotune-no-cudagraphs", "options.x=1"], "not both"),
        (["backend=eager", "options.x=1"], "takes neither"),
        ("{mode}", "not valid JSON"),
        ('{"options": 3}', "must be an object"),
        ('{"options": {"a": [1]}}', "plain value"),
    ],
)
def test_nonsense(config: list[str] | str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        read_compile_options(config)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["torch_compile_config=mode=default"], "without torch_compile=T"),
        (["torch_compile=T", "device=cpu"], "cpu_kernels=F"),
        (["torch_compile=T", "torch_compile_config=mode=fast"], "choose one of"),
        (["cudagraph_step=0"], "at least 1"),
    ],
)
def test_options_that_contradict_each_other(arguments: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        EngineConfig.from_args(arguments)
