"""Backends by name."""

import pytest
import torch

from tokasaurus.errors import ConfigError
from tokasaurus.model.attention import registry
from tokasaurus.model.attention.backend import AttentionLayer
from tokasaurus.model.attention.torch_backend import TorchBackend

LAYERS = (AttentionLayer(index=0, num_heads=1, num_kv_heads=1, head_dim=8, scale=1.0),)


def create(name: str, device: str = "cpu") -> object:
    return registry.create_backend(
        name, LAYERS, page_size=4, dtype=torch.float32, device=torch.device(device)
    )


def test_torch_by_name() -> None:
    assert isinstance(create("torch"), TorchBackend)


def test_unknown_name_lists_options() -> None:
    with pytest.raises(ConfigError, match=r"auto or one of: .*torch"):
        create("flash")


def test_backend_of_another_device_is_refused() -> None:
    assert registry.backend_names(torch.device("cuda")) == ["flashinfer", "torch"]
    with pytest.raises(ConfigError, match="does not run on cuda"):
        create("cpu", "cuda")


def test_auto_falls_back_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(
        registry._ENTRIES, "cpu", registry._Entry(__name__, "Unbuildable", ("cpu",))
    )
    assert isinstance(create("auto"), TorchBackend)
    assert [record.getMessage() for record in caplog.records] == [
        "attention_backend=cpu is not available: install a C++ compiler"
    ]
    with pytest.raises(ConfigError, match="compiler"):
        create("cpu")


class Unbuildable:
    """A backend that can't be built here."""

    def __init__(self, *_: object, **__: object) -> None:
        raise ConfigError("install a C++ compiler")


def test_fp8_is_refused_where_no_backend_has_it() -> None:
    for name in ("auto", "torch"):
        with pytest.raises(ConfigError, match="kv_cache_dtype=auto"):
            registry.create_backend(
                name,
                LAYERS,
                page_size=4,
                dtype=torch.float32,
                device=torch.device("cpu"),
                kv_cache_dtype="fp8",
            )
