"""The bytes that each token contributes to a text, read off the checkpoint's decoder.

Decoders that work token by token (byte-level BPE, SentencePiece with byte fallback, Metaspace,
none) are understood; for others `TokenBytes.for_backend` returns None, and windows are decoded.
"""

import json
from collections.abc import Callable
from typing import Any

import tokenizers

_UNDERSCORE = "\N{LOWER ONE EIGHTH BLOCK}"


class TokenBytes(dict[int, bytes]):
    """`token_bytes[token_id]`: its bytes inside a text; b"" for ids that are not in the vocabulary.

    Filled as tokens are asked for, so that a large vocabulary costs nothing until it is used.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        to_bytes: Callable[[str], bytes],
        to_first_bytes: Callable[[str], bytes],
    ) -> None:
        super().__init__()
        self._backend = backend
        self._to_bytes = to_bytes
        self._to_first_bytes = to_first_bytes

    @classmethod
    def for_backend(cls, backend: tokenizers.Tokenizer) -> "TokenBytes | None":
        """None if the decoder is of a kind that does not work token by token."""
        rule = _rule_of(backend)
        return None if rule is None else cls(backend, *rule)

    def __missing__(self, token_id: int) -> bytes:
        token = self._token(token_id)
        value = b"" if token is None else self._to_bytes(token)
        self[token_id] = value
        return value

    def first(self, token_id: int) -> bytes:
        """Its bytes at the start of a text, where most decoders drop a leading space."""
        token = self._token(token_id)
        return b"" if token is None else self._to_first_bytes(token)

    def knows(self, token_id: int) -> bool:
        """Whether the id is in the vocabulary."""
        return self._token(token_id) is not None

    def _token(self, token_id: int) -> str | None:
        return self._backend.id_to_token(token_id) if 0 <= token_id < 2**32 else None


_Rule = tuple[Callable[[str], bytes], Callable[[str], bytes]]


def _rule_of(backend: tokenizers.Tokenizer) -> _Rule | None:
    """How a token becomes bytes inside a text, and at its start."""
    if backend.decoder is None:
        return (lambda token: b" " + token.encode()), str.encode
    spec = json.loads(backend.decoder.__getstate__())
    steps: list[dict[str, Any]] = spec["decoders"] if spec["type"] == "Sequence" else [spec]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return _byte_level, _byte_level
    if kinds == ["Metaspace"]:
        return _metaspace(steps[0])
    return _sentencepiece(steps)


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: itself where printable, else from U+0100 up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_level_alphabet()


def _byte_level(token: str) -> bytes:
    try:
        return bytes([_BYTE_OF[char] for char in token])
    except KeyError:  # an added token, which is plain text
        return token.encode()


def _metaspace(step: dict[str, Any]) -> _Rule:
    mark = step.get("replacement", _UNDERSCORE)

    def inside(token: str) -> bytes:
        return token.replace(mark, " ").encode()

    def at_start(token: str) -> bytes:
        return token.replace(mark, "").encode()

    return inside, inside if step.get("prepend_scheme") == "never" else at_start


def _sentencepiece(steps: list[dict[str, Any]]) -> _Rule | None:
    """Replacements, then byte fallback, then at most one space stripped from the front."""
    kinds = [step["type"] for step in steps]
    num_replacements = next((i for i, kind in enumerate(kinds) if kind != "Replace"), len(kinds))
    replacements = [(s["pattern"].get("String"), s["content"]) for s in steps[:num_replacements]]
    if any(not old for old, _ in replacements):
        return None
    strips = False
    match kinds[num_replacements:]:
        case ["ByteFallback", "Fuse"]:
            pass
        case ["ByteFallback", "Fuse", "Strip"]:
            strip = steps[-1]
            if (strip["content"], strip["start"], strip["stop"]) != (" ", 1, 0):
                return None
            strips = True
        case _:
            return None

    def inside(token: str) -> bytes:
        for old, new in replacements:
            token = token.replace(old, new)
        return _fallback_byte(token) or token.encode()

    def at_start(token: str) -> bytes:
        return inside(token).removeprefix(b" ")

    return inside, at_start if strips else inside


def _fallback_byte(token: str) -> bytes | None:
    """The byte that "<0xE4>" stands for."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            return None
    return None
