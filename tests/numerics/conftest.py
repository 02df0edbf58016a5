"""Checkpoints shared by all numerics tests of a session."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.checkpoints import make_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_checkpoint` in a folder that lasts for the session."""
    directory = tmp_path_factory.mktemp("checkpoints")
    return lambda family, **overrides: make_checkpoint(family, directory, **overrides)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Only here: the tests of other folders have all threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
