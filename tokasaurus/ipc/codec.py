"""The wire form of messages: one msgpack frame, and one frame with the bytes of all its arrays.

An array stands in the msgpack frame as [dtype, byte offset, shape...]; its bytes start at that
offset of the second frame, aligned to 8; an array that stands in a message more than once is sent
once. Decoded arrays are read-only views of the received bytes.
"""

import math
from collections.abc import Sequence
from types import UnionType
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np

from tokasaurus.errors import ProtocolError

_ALIGNMENT = 8
_DTYPES = {np.dtype(name).str: np.dtype(name) for name in ("i4", "i8", "u8", "f4", "?")}

M = TypeVar("M")


class Encoder:
    """Turns messages into frames. Not thread-safe: one per channel."""

    def __init__(self) -> None:
        self._msgpack = msgspec.msgpack.Encoder(enc_hook=self._encode_array)
        self._chunks: list[bytes | memoryview] = []
        self._size = 0
        self._places: dict[int, list[Any]] = {}
        """What stands for each array of the message, by the array's identity."""

    def encode(self, message: msgspec.Struct) -> list[bytes]:
        """Return [header] or [header, array bytes]."""
        self._chunks, self._size, self._places = [], 0, {}
        header = self._msgpack.encode(message)
        if not self._chunks:
            return [header]
        return [header, b"".join(self._chunks)]

    def _encode_array(self, value: Any) -> list[Any]:
        place = self._places.get(id(value))
        if place is None:
            place = self._places[id(value)] = self._placed(value)
        return place

    def _placed(self, value: Any) -> list[Any]:
        if not isinstance(value, np.ndarray) or value.dtype.str not in _DTYPES:
            kind = value.dtype if isinstance(value, np.ndarray) else type(value)
            raise TypeError(f"{kind} has no wire form")
        offset = self._size
        if value.nbytes:
            data = np.ascontiguousarray(value).tobytes()
            padding = -len(data) % _ALIGNMENT
            self._chunks += [data, bytes(padding)] if padding else [data]
            self._size += len(data) + padding
        return [value.dtype.str, offset, *value.shape]


class Decoder(Generic[M]):
    """Turns frames into messages of one tagged union. Not thread-safe: one per channel."""

    def __init__(self, message_type: type[M] | UnionType) -> None:
        self._msgpack = msgspec.msgpack.Decoder(message_type, dec_hook=self._decode_array)
        self._blob: bytes = b""

    def decode(self, frames: Sequence[bytes]) -> M:
        """Raises ProtocolError for anything that is not a message of the union."""
        if not 1 <= len(frames) <= 2:
            raise ProtocolError(f"a message has 1 or 2 frames, not {len(frames)}")
        self._blob = frames[1] if len(frames) == 2 else b""
        try:
            return self._msgpack.decode(frames[0])
        except (msgspec.MsgspecError, ValueError, TypeError) as error:
            raise ProtocolError(f"undecodable message: {error}") from error

    def _decode_array(self, expected: type, value: Any) -> np.ndarray:
        if expected is not np.ndarray:
            raise TypeError(f"{expected} has no wire form")
        dtype_name, offset, *shape = value
        dtype = _DTYPES.get(dtype_name)
        if dtype is None or not all(isinstance(n, int) and n >= 0 for n in (offset, *shape)):
            raise ValueError(f"malformed array {value!r}")
        count = math.prod(shape)
        if count == 0:
            return np.empty(shape, dtype)
        array = np.frombuffer(self._blob, dtype, count, offset)
        return array if len(shape) == 1 else array.reshape(shape)
