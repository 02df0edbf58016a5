"""Attention backends by name; a backend's module is imported when it is chosen."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import torch

from tokasaurus.errors import ConfigError
from tokasaurus.model.attention.backend import AttentionBackend, AttentionLayer

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A backend's module and class, and the device types it runs on (none: all)."""

    module: str
    class_name: str
    device_types: tuple[str, ...] = ()


_ENTRIES = {
    "cpu": _Entry("tokasaurus.model.attention.cpu_backend", "CpuBackend", ("cpu",)),
    "torch": _Entry("tokasaurus.model.attention.torch_backend", "TorchBackend"),
}
"""In the order in which "auto" tries them."""


def backend_names(device: torch.device) -> list[str]:
    """Names that run on `device`, best first."""
    return [
        name
        for name, entry in _ENTRIES.items()
        if (not entry.device_types or device.type in entry.device_types)
        and find_spec(entry.module) is not None
    ]


def create_backend(
    name: str,
    layers: tuple[AttentionLayer, ...],
    *,
    page_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> AttentionBackend:
    """Build the named backend; "auto" takes the best one that can be built here.

    A backend's constructor takes the same arguments and raises ConfigError, with the reason, where
    it can't serve them (no compiler, a head size without a kernel).
    """
    names = backend_names(device)
    if name != "auto" and name not in names:
        raise ConfigError(
            f"attention_backend={name} does not run on {device.type}; choose auto or one of: "
            f"{', '.join(names)}"
        )
    for candidate in names if name == "auto" else [name]:
        entry = _ENTRIES[candidate]
        factory: Callable[..., AttentionBackend]
        factory = getattr(import_module(entry.module), entry.class_name)
        try:
            return factory(layers, page_size=page_size, dtype=dtype, device=device)
        except ConfigError as error:
            if name != "auto" or candidate == names[-1]:
                raise
            _logger.warning("attention_backend=%s is not available: %s", candidate, error)
    raise AssertionError(f"no attention backend for {device.type}")
