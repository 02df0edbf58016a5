"""Whole decode steps in one call of the CPU kernels: from the slots' last tokens to their next.

After a pass over the weights nothing is left in the CPU's caches, so that between two passes a call
through torch takes some 40 microseconds. This is one call through ctypes, without tensors.
"""

import ctypes
import math
from dataclasses import dataclass

import numpy as np

from tokasaurus.model.attention.cpu_backend import CpuBackend
from tokasaurus.model.kernels.fused_decoder import FusedDecoder

_DTYPES: dict[str, type[np.generic]] = {
    "block_tables": np.int32,
    "num_blocks": np.int32,
    "kv_lens": np.int64,
    "last_tokens": np.int64,
    "temperature": np.float32,
    "top_p": np.float32,
    "min_p": np.float32,
    "top_k": np.int32,
    "seeds": np.int64,
}
"""What the kernels take the columns for."""


class _Slots(ctypes.Structure):
    """DecodeSlots of csrc/decode_step.h."""

    _fields_ = (
        ("block_tables", ctypes.c_void_p),
        ("max_blocks", ctypes.c_int64),
        ("num_blocks", ctypes.c_void_p),
        ("kv_lens", ctypes.c_void_p),
        ("last_tokens", ctypes.c_void_p),
        ("temperature", ctypes.c_void_p),
        ("top_p", ctypes.c_void_p),
        ("min_p", ctypes.c_void_p),
        ("top_k", ctypes.c_void_p),
        ("seeds", ctypes.c_void_p),
    )


class _Passes(ctypes.Structure):
    """DecodePasses of csrc/decode_step.h."""

    _fields_ = (
        ("most", ctypes.c_int64),
        ("stop_tokens", ctypes.c_void_p),
        ("num_stop_tokens", ctypes.c_int64),
        ("descriptor", ctypes.c_int),
        ("max_seconds", ctypes.c_double),
    )


@dataclass(slots=True, kw_only=True)
class SlotColumns:
    """Arrays by slot that a step reads. They are the caller's own, who may write to them between
    steps; `kv_lens` and `last_tokens` are advanced by a step."""

    block_tables: np.ndarray
    """int32[slots, blocks]"""
    num_blocks: np.ndarray
    """int32: how many of the slot's row of `block_tables` are its own"""
    kv_lens: np.ndarray
    """int64"""
    last_tokens: np.ndarray
    """int64"""
    temperature: np.ndarray
    """float32"""
    top_p: np.ndarray
    """float32"""
    min_p: np.ndarray
    """float32"""
    top_k: np.ndarray
    """int32"""
    seeds: np.ndarray
    """int64"""


def _check(array: np.ndarray, dtype: type[np.generic], name: str) -> None:
    assert array.dtype == dtype, f"{name} must be {dtype.__name__}, not {array.dtype}"
    assert array.flags.c_contiguous, f"{name} must be contiguous"
    assert array.flags.aligned, f"{name} must be aligned"


class DecodeStep:
    """Draws as `sample` does for rows without log-probabilities, adjustments and bans."""

    def __init__(self, decoder: FusedDecoder, backend: CpuBackend, max_logits_rows: int) -> None:
        """`backend` keeps its cache for as long as this is used. Of more rows than
        `max_logits_rows` logits are made and drawn from one part after the other."""
        self._step = decoder.make_decode_step(backend, max_logits_rows)
        self._address = self._step.address()
        self._run = backend.kernels.library.toka_decode_step
        self._run.restype = ctypes.c_int64
        self._run.argtypes = (
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_void_p,
            ctypes.c_void_p,
        )
        self._columns: SlotColumns | None = None
        self._slots = _Slots()
        self._passes = _Passes(descriptor=-1, max_seconds=math.inf)
        self._stop_tokens = np.empty(0, np.int32)
        self._rows = np.empty(0, np.int64)
        self._groups = np.empty((0, 3), np.int32)
        self._tokens = np.empty((0, 0), np.int32)
        self._arguments: tuple[int | None, ...] = ()

    def bind(self, columns: SlotColumns) -> None:
        """From now on steps read and write these arrays."""
        self._columns = columns
        for name, dtype in _DTYPES.items():
            column = getattr(columns, name)
            _check(column, dtype, name)
            assert column.flags.writeable, f"{name} must be writeable"
            setattr(self._slots, name, column.ctypes.data)
        self._slots.max_blocks = columns.block_tables.shape[1]

    def set_rows(self, slots: np.ndarray, groups: np.ndarray) -> None:
        """Which slots decode in the steps to come: int64[D]; Hydragen groups of the rows, int32
        [G, 3]: first row, rows, blocks."""
        _check(slots, np.int64, "slots")
        _check(groups, np.int32, "groups")
        self._rows, self._groups = slots, groups
        self._make_room(1)

    def pause_at(
        self, stop_tokens: np.ndarray, descriptor: int, max_seconds: float = math.inf
    ) -> None:
        """Where `run` returns before it has run all passes: after one that drew one of these
        (int32, ascending), or after which `descriptor`, unless it is negative, can be read, or
        that ended `max_seconds` after `run` began."""
        self._passes.descriptor = descriptor
        self._passes.max_seconds = max_seconds
        if stop_tokens is not self._stop_tokens:
            _check(stop_tokens, np.int32, "stop_tokens")
            self._stop_tokens = stop_tokens
            self._passes.stop_tokens = stop_tokens.ctypes.data
            self._passes.num_stop_tokens = len(stop_tokens)

    def run(self, max_passes: int = 1) -> np.ndarray:
        """int32[R, D]: the tokens that each of at most `max_passes` passes drew, -1 for rows whose
        largest logit is not finite; the next run overwrites them. Rows have room for their tokens,
        in their blocks and in the model. Passes end early as `pause_at` says, and after one with a
        -1."""
        if max_passes > len(self._tokens):
            self._make_room(max_passes)
        self._passes.most = max_passes
        num_passes = self._run(*self._arguments)
        assert num_passes != -2, "a decode step runs over the end of a row's blocks or of the model"
        if num_passes < 0:
            raise MemoryError("a decode step ran out of memory")
        return self._tokens[:num_passes]

    def _make_room(self, max_passes: int) -> None:
        self._tokens = np.empty((max_passes, len(self._rows)), np.int32)
        self._arguments = (
            self._address,
            ctypes.addressof(self._slots),
            self._rows.ctypes.data,
            len(self._rows),
            self._groups.ctypes.data,
            len(self._groups),
            ctypes.addressof(self._passes),
            self._tokens.ctypes.data,
        )
