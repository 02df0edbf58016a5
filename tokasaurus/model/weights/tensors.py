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
        self.num_bytes_copied = 0

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

    def copy_to(
        self, target: torch.Tensor, rows: slice | None = None, columns: slice | None = None
    ) -> None:
        """Copy (these rows and columns of) the tensor, in the target's dtype, to its device.

        Nothing else of it is read, but for what shares a page of the file with it.
        """
        if rows is None and columns is None:
            self.expect_shape(target.shape)
        source = self._data.reshape(-1) if self._data.dim() == 0 else self._data
        target = target.reshape(-1) if target.dim() == 0 else target
        if not self._data.is_floating_point():
            raise ModelError(
                f"Tensor {self.name} in {self._file_name} holds {self.dtype}; quantised "
                "checkpoints are not supported, use the original floating-point one."
            )
        first, end = (0, source.shape[0]) if rows is None else (rows.start, rows.stop)
        if source.numel() == 0 or end <= first:
            return
        row_bytes = self.num_bytes // source.shape[0]
        step = max(1, _CHUNK_BYTES // row_bytes)
        for start in range(first, end, step):
            stop = min(start + step, end)
            chunk = source[start:stop] if columns is None else source[start:stop, columns]
            target[start - first : stop - first].copy_(chunk)
            self.num_bytes_copied += chunk.numel() * chunk.element_size()
            self._release(start * row_bytes, stop * row_bytes)

    def _release(self, start: int, stop: int) -> None:
        """Drop the whole pages between two byte offsets of the tensor from this process."""
        begin = -(-(self._offset + start) // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (self._offset + stop) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > begin and hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED, begin, end - begin)
