"""How many KV blocks fit: as asked for, or from free memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from tokasaurus.errors import ConfigError

_CPU_DEFAULT_MAX_BYTES = 4 << 30
"""On a CPU the cache shares memory with everything else; more is there for the asking."""
_CPU_DEFAULT_MAX_SEQUENCES = 128
"""The default holds at most so many sequences of full length, which keeps small models small."""
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class KVRequest:
    """What the options and the model say about the cache."""

    num_tokens: int | None
    """kv_cache_num_tokens"""
    memory_fraction: float
    page_size: int
    bytes_per_block: int
    max_model_len: int


class ActivationMemory:
    """What steps take on a GPU beyond weights and KV cache; on a CPU nothing is measured."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0

    def start(self) -> None:
        """Weights and the warm-up's KV cache are in place."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)

    def peak_bytes(self) -> int:
        if self._device.type != "cuda":
            return 0
        return max(0, torch.cuda.max_memory_allocated(self._device) - self._before)


@contextmanager
def naming_what_to_lower(doing: str, device: torch.device, advice: str) -> Iterator[None]:
    """Turns torch's running out of memory into a ConfigError with numbers and advice."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        if device.type != "cuda":
            raise
        free, total = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_allocated(device)
        raise ConfigError(
            f"{device} ran out of memory while {doing}: this process holds {_gib(held)}, "
            f"{_gib(free)} of {_gib(total)} are free. {advice}"
        ) from error


def choose_num_blocks(request: KVRequest, free_bytes: int, device_type: str) -> int:
    """Blocks to allocate. Raises ConfigError when they don't fit or nothing fits."""
    if request.num_tokens is not None:
        num_blocks = -(-request.num_tokens // request.page_size)
        needed = num_blocks * request.bytes_per_block
        if needed > free_bytes:
            fitting = free_bytes // request.bytes_per_block * request.page_size
            raise ConfigError(
                f"kv_cache_num_tokens={request.num_tokens} needs {_gib(needed)} of KV cache, but "
                f"{_gib(free_bytes)} are free; lower it to at most {fitting}."
            )
        return num_blocks
    num_blocks = int(free_bytes * request.memory_fraction) // request.bytes_per_block
    if device_type == "cpu":
        num_blocks = min(
            num_blocks,
            _CPU_DEFAULT_MAX_BYTES // request.bytes_per_block,
            -(-request.max_model_len // request.page_size) * _CPU_DEFAULT_MAX_SEQUENCES,
        )
    if num_blocks < 1:
        raise ConfigError(
            f"There is no room for a KV cache: {_gib(free_bytes)} of memory are free after "
            f"loading, and one block of page_size={request.page_size} tokens takes "
            f"{_gib(request.bytes_per_block)}. Lower page_size or max_tokens_per_forward, raise "
            "kv_cache_memory_fraction, or take a smaller model."
        )
    return num_blocks


def free_device_bytes(device: torch.device) -> int:
    """Memory that this process could still allocate on the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return min(psutil.virtual_memory().available, _free_cgroup_bytes())


def _free_cgroup_bytes() -> int:
    """What the container's limit leaves; reclaimable file cache counts as free."""
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(stat.get("inactive_file", 0)))
    except (OSError, ValueError):
        return 1 << 62  # no limit ("max"), or no cgroup


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
