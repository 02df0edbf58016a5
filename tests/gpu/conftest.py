"""What needs a GPU: skipped without one.

TOKASAURUS_TEST_DEVICE=cpu runs the same code on a CPU, with the backends that a CPU has.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.checkpoints import make_checkpoint
from tokasaurus.errors import ConfigError
from tokasaurus.model.attention.backend import AttentionLayer
from tokasaurus.model.attention.registry import backend_names, create_backend

_NAME = os.environ.get("TOKASAURUS_TEST_DEVICE", "cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    is_there = _NAME == "cpu" or torch.cuda.is_available()
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not is_there:
                item.add_marker(pytest.mark.skip(reason="there is no GPU"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device(_NAME)


@pytest.fixture(scope="session")
def dtype(device: torch.device) -> torch.dtype:
    """What all backends of the device compute in."""
    return torch.bfloat16


@pytest.fixture(scope="session")
def best_backend(device: torch.device, dtype: torch.dtype) -> str:
    """The fastest attention backend that works here."""
    layer = AttentionLayer(index=0, num_heads=4, num_kv_heads=1, head_dim=64, scale=0.1)
    for name in backend_names(device):
        try:
            create_backend(name, (layer,), page_size=16, dtype=dtype, device=device)
        except ConfigError:
            continue
        return name
    raise AssertionError("no backend works here")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    directory = tmp_path_factory.mktemp("checkpoints")

    def make(family: str, **overrides: object) -> Path:
        return make_checkpoint(family, directory, **overrides)

    return make
