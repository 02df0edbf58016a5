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
    takes_fp8: bool = False
    """Its KV cache may be in float8_e4m3fn."""


_ENTRIES = {
    "cpu": _Entry("tokasaurus.model.attention.cpu_backend", "CpuBackend", ("cpu",)),
    "flashinfer": _Entry(
        "tokasaurus.model.attention.flashinfer_backend",
        "FlashInferBackend",
        ("cuda",),
        takes_fp8=True,
    ),
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
    kv_cache_dtype: str = "auto",
) -> AttentionBackend:
    """Build the named backend; "auto" takes the best one that can be built here.

    `kv_cache_dtype` is "auto" (as `dtype`) or "fp8". Raises ConfigError where that can't be had.

    A backend's constructor takes the same arguments and raises ConfigError, with the reason, where
    it can't serve them (no compiler, a head size without a kernel).
    """
    names = backend_names(device)
    if name != "auto" and name not in names:
        raise ConfigError(
            f"attention_backend={name} does not run on {device.type}; choose auto or one of: "
            f"{', '.join(names)}"
        )
    options: dict[str, torch.dtype] = {}
    if kv_cache_dtype == "fp8":
        options["kv_dtype"] = torch.float8_e4m3fn
        names = [candidate for candidate in names if _ENTRIES[candidate].takes_fp8]
        if not names or name not in ("auto", *names):
            raise ConfigError(
                f"kv_cache_dtype=fp8 needs attention_backend=flashinfer on a GPU, not {name} on "
                f"{device.type}; set kv_cache_dtype=auto."
            )
    for candidate in names if name == "auto" else [name]:
        entry = _ENTRIES[candidate]
        factory: Callable[..., AttentionBackend]
        factory = getattr(import_module(entry.module), entry.class_name)
        try:
            return factory(layers, page_size=page_size, dtype=dtype, device=device, **options)
        except ConfigError as error:
            if name != "auto" or candidate == names[-1]:
                raise
            _logger.warning("attention_backend=%s is not available: %s", candidate, error)
    raise AssertionError(f"no attention backend for {device.type}")
