"""Reads one file in the safetensors format through a memory map.

The format: eight bytes of little-endian header length, a JSON header that gives each tensor's
dtype, shape and byte range, then the bytes (https://github.com/huggingface/safetensors#format).
"""

import json
import math
import mmap
from pathlib import Path
from typing import Any

import torch

from tokasaurus.errors import ModelError
from tokasaurus.model.weights.tensors import CheckpointTensor

_MAX_HEADER_BYTES = 100_000_000
_LENGTH_BYTES = 8

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class SafetensorsFile:
    """The tensors of one file. The mapping lives as long as any of its tensors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                # A private mapping: torch wants writable memory, and nothing writes it.
                self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise ModelError(f"Can't read {path}: {error}. Download the model again.") from error
        self._header, self._data_start = self._read_header()

    def _broken(self, why: str) -> ModelError:
        return ModelError(
            f"{self.path} is not a whole safetensors file ({why}); download it again."
        )

    def _read_header(self) -> tuple[dict[str, Any], int]:
        size = len(self._mapping)
        if size < _LENGTH_BYTES:
            raise self._broken(f"{size} bytes")
        length = int.from_bytes(self._mapping[:_LENGTH_BYTES], "little")
        start = _LENGTH_BYTES + length
        if length > _MAX_HEADER_BYTES or start > size:
            raise self._broken("its header is cut off")
        try:
            header = json.loads(self._mapping[_LENGTH_BYTES:start])
        except ValueError as error:
            raise self._broken("its header is not JSON") from error
        if not isinstance(header, dict):
            raise self._broken("its header is not an object")
        header.pop("__metadata__", None)
        return header, start

    def names(self) -> list[str]:
        return list(self._header)

    def _entry(self, name: str) -> tuple[torch.dtype, list[int], int, int]:
        """(dtype, shape, offset in the file, elements) of a tensor, checked."""
        entry = self._header[name]
        try:
            dtype = DTYPES[entry["dtype"]]
            shape = [int(size) for size in entry["shape"]]
            begin, end = (int(offset) for offset in entry["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._broken(f"tensor {name} is described by {entry!r}") from error
        count = math.prod(shape)
        num_bytes = count * torch.empty((), dtype=dtype).element_size()
        offset = self._data_start + begin
        if min([begin, *shape]) < 0 or end - begin != num_bytes:
            raise self._broken(f"tensor {name} has {end - begin} bytes for shape {shape}")
        if offset + num_bytes > len(self._mapping):
            raise self._broken(f"tensor {name} is cut off")
        return dtype, shape, offset, count

    def dtype(self, name: str) -> torch.dtype:
        return self._entry(name)[0]

    def tensor(self, name: str) -> CheckpointTensor:
        dtype, shape, offset, count = self._entry(name)
        if count == 0:
            data = torch.empty(shape, dtype=dtype)
        else:
            data = torch.frombuffer(self._mapping, dtype=dtype, count=count, offset=offset)
        return CheckpointTensor(name, data.view(shape), self._mapping, offset, self.path.name)
