"""Token ids to text as they arrive: characters whose bytes are not complete yet are held back.

The pieces of one text, joined, do not depend on how its tokens were cut into pushes.
"""

import codecs
from collections.abc import Sequence
from typing import Protocol

import tokenizers

from tokasaurus.tokenization.token_bytes import TokenBytes

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer(Protocol):
    """One text in the making."""

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that is certain with these tokens, and was not returned before."""

    def flush(self) -> str:
        """What is still held back; bytes that never became a character turn into U+FFFD."""


class ByteDetokenizer:
    """For decoders that work token by token: constant work per token.

    Bytes that are not UTF-8 turn into one U+FFFD per maximal invalid part. (The tokenizers package
    does the same for byte-level decoders, but gives up a whole run of byte-fallback tokens when
    one of them is wrong, which a stream can't: its characters have been sent.)
    """

    __slots__ = ("_at_start", "_held", "_hidden", "_token_bytes")

    def __init__(
        self, token_bytes: TokenBytes, hidden: frozenset[int], *, at_start: bool = True
    ) -> None:
        """`hidden` tokens contribute nothing. `at_start`: no visible token came before."""
        self._token_bytes = token_bytes
        self._hidden = hidden
        self._at_start = at_start
        self._held = b""

    def push(self, token_ids: Sequence[int]) -> str:
        if self._at_start:
            return self._push_at_start(token_ids)
        hidden, token_bytes = self._hidden, self._token_bytes
        data = b"".join([token_bytes[i] for i in token_ids if i not in hidden])
        if not self._held and data.isascii():
            return data.decode("ascii")
        return self._decode(data) if data else ""

    def flush(self) -> str:
        text, _ = codecs.utf_8_decode(self._held, "replace", True)
        self._held = b""
        return text

    def _decode(self, data: bytes) -> str:
        """Bytes of a character that is not complete are held."""
        data = self._held + data
        text, num_decoded = codecs.utf_8_decode(data, "replace", False)
        self._held = data[num_decoded:]
        return text

    def _push_at_start(self, token_ids: Sequence[int]) -> str:
        for index, token_id in enumerate(token_ids):
            if token_id not in self._hidden and self._token_bytes.knows(token_id):
                self._at_start = False
                first = self._decode(self._token_bytes.first(token_id))
                return first + self.push(token_ids[index + 1 :])
        return ""


class WindowDetokenizer:
    """For any other decoder: decodes a window of tokens that starts at the last clean cut.

    A window that never gets clean is cut after `max_window` tokens, so work per token is bounded.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        skip_special_tokens: bool,
        prefix: Sequence[int] = (),
        max_window: int = 16,
    ) -> None:
        """`prefix`: the tokens just before, which are context and are not returned."""
        self._backend = backend
        self._skip_special_tokens = skip_special_tokens
        self._max_window = max_window
        self._context = list(prefix)
        self._pending: list[int] = []

    def push(self, token_ids: Sequence[int]) -> str:
        return "".join([self._push_one(token_id) for token_id in token_ids])

    def flush(self) -> str:
        return self._cut() if self._pending else ""

    def _push_one(self, token_id: int) -> str:
        self._pending.append(token_id)
        text = self._decode(self._context + self._pending)
        if text.endswith(_REPLACEMENT) and len(self._pending) < self._max_window:
            return ""
        return self._cut()

    def _cut(self) -> str:
        before = self._decode(self._context)
        text = self._decode(self._context + self._pending)
        self._context, self._pending = (self._context + self._pending)[-self._max_window :], []
        return text[len(before) :]

    def _decode(self, token_ids: list[int]) -> str:
        return self._backend.decode(token_ids, skip_special_tokens=self._skip_special_tokens)
