"""The wire form of messages: one frame of msgpack and the bytes of all arrays.

A frame is the length of the msgpack part (8 bytes, little-endian), that part, and the arrays, each
at a multiple of 8. In the msgpack part an array stands as [dtype, offset, shape...], where offsets
count from the first array; an array that stands in a message more than once is sent once. Decoded
arrays are read-only views of the received bytes.
"""

import math
from types import UnionType
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np

from tokasaurus.errors import ProtocolError

_ALIGNMENT = 8
_LENGTH_BYTES = 8
_DTYPES = {np.dtype(name).str: np.dtype(name) for name in ("i4", "i8", "u8", "f4", "?")}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

M = TypeVar("M")


class Encoder:
    """Turns messages into frames. Not thread-safe: one per channel."""

    def __init__(self) -> None:
        self._msgpack = msgspec.msgpack.Encoder(enc_hook=self._encode_array)
        self._chunks: list[bytes] = []
        self._size = 0
        self._places: dict[int, list[Any]] = {}
        """What stands for each array of the message, by the array's identity."""

    def encode(self, message: msgspec.Struct) -> bytes:
        self._chunks, self._size, self._places = [], 0, {}
        header = self._msgpack.encode(message)
        length = len(header).to_bytes(_LENGTH_BYTES, "little")
        if not self._chunks:
            return length + header
        return b"".join((length, header, bytes(-len(header) % _ALIGNMENT), *self._chunks))

    def _encode_array(self, value: Any) -> list[Any]:
        place = self._places.get(id(value))
        if place is None:
            place = self._places[id(value)] = self._placed(value)
        return place

    def _placed(self, value: Any) -> list[Any]:
        name = _NAMES.get(value.dtype) if isinstance(value, np.ndarray) else None
        if name is None:
            kind = value.dtype if isinstance(value, np.ndarray) else type(value)
            raise TypeError(f"{kind} has no wire form")
        offset = self._size
        data = value.tobytes()
        if data:
            padding = -len(data) % _ALIGNMENT
            self._chunks += [data, bytes(padding)] if padding else [data]
            self._size += len(data) + padding
        return [name, offset, *value.shape]


class Decoder(Generic[M]):
    """Turns frames into messages of one tagged union. Not thread-safe: one per channel."""

    def __init__(self, message_type: type[M] | UnionType) -> None:
        self._msgpack = msgspec.msgpack.Decoder(message_type, dec_hook=self._decode_array)
        self._frame = b""
        self._first_array = 0

    def decode(self, frame: bytes) -> M:
        """Raises ProtocolError for anything that is not a message of the union."""
        end = _LENGTH_BYTES + int.from_bytes(frame[:_LENGTH_BYTES], "little")
        if end > len(frame):
            raise ProtocolError(f"a message of {len(frame)} bytes is cut short")
        self._frame, self._first_array = frame, end + -end % _ALIGNMENT
        try:
            return self._msgpack.decode(memoryview(frame)[_LENGTH_BYTES:end])
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
        array = np.frombuffer(self._frame, dtype, count, self._first_array + offset)
        return array if len(shape) == 1 else array.reshape(shape)
