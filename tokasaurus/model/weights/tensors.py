"""A checkpoint's tensor on disk, copied into a parameter without ever being whole in memory."""

import mmap
from collections.abc import Sequence

import torch

from tokasaurus.errors import ModelError

_CHUNK_BYTES = 64 * 2**20


class CheckpointTensor:
    """A tensor inside a mapped file. Pages that were copied are given back at once."""

    def __init__(
        self, name: str, data: torch.Tensor, mapping: mmap.mmap, offset: int, file_name: str
    ) -> None:
        self.name = name
        self._data = data
        self._mapping = mapping
        self._offset = offset
        self._file_name = file_name

    @property
    def shape(self) -> torch.Size:
        return self._data.shape

    @property
    def dtype(self) -> torch.dtype:
        return self._data.dtype

    @property
    def num_bytes(self) -> int:
        return self._data.numel() * self._data.element_size()

    def expect_shape(self, shape: Sequence[int]) -> None:
        if tuple(self.shape) != tuple(shape):
            raise ModelError(
                f"Tensor {self.name} in {self._file_name} has shape {tuple(self.shape)} where "
                f"config.json implies {tuple(shape)}; config.json and weights do not match."
            )

    def copy_to(self, target: torch.Tensor, rows: slice | None = None) -> None:
        """Copy (these rows of) the tensor, converting to the target's dtype and device."""
        if rows is None:
            self.expect_shape(target.shape)
            first, count = 0, self.shape[0] if self.shape else 1
        else:
            first, count = rows.start, rows.stop - rows.start
        if not self._data.is_floating_point():
            raise ModelError(
                f"Tensor {self.name} in {self._file_name} holds {self.dtype}; quantised "
                "checkpoints are not supported, use the original floating-point one."
            )
        if self._data.numel() == 0:
            return
        source = self._data.reshape(-1) if self._data.dim() == 0 else self._data
        target = target.reshape(-1) if target.dim() == 0 else target
        row_bytes = self.num_bytes // source.shape[0]
        step = max(1, _CHUNK_BYTES // row_bytes)
        for start in range(0, count, step):
            stop = min(start + step, count)
            target[start:stop].copy_(source[first + start : first + stop])
            self._release((first + start) * row_bytes, (first + stop) * row_bytes)

    def _release(self, start: int, stop: int) -> None:
        """Drop the whole pages between two byte offsets of the tensor from this process."""
        begin = -(-(self._offset + start) // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (self._offset + stop) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > begin and hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED, begin, end - begin)
