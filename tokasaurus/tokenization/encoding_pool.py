"""Tokenizes for an event loop: short texts on it, long ones on threads (the GIL is released)."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tokasaurus.errors import OverloadedError
from tokasaurus.tokenization.tokenizer import Tokenizer

_MAX_INLINE_CHARACTERS = 512
"""Encoding these takes well under a millisecond, about what handing them to a thread costs."""
_MAX_CHARACTERS = 2**27
_CHARACTERS_PER_CALL = 8192
"""A request that waits weighs as much as so many characters, besides its own."""
_RETRY_AFTER_SECONDS = 1.0


class EncodingPool:
    """Belongs to one event loop. `num_threads` bounds how many long prompts are encoded at a time;
    others wait their turn, as long as all of them together have at most `max_characters`.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, num_threads: int = 2, max_characters: int = _MAX_CHARACTERS
    ) -> None:
        self._tokenizer = tokenizer
        self._max_characters = max_characters
        self._num_characters = 0
        """Of what waits for a thread or has one."""
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="tokenize")

    async def encode(
        self, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> list[list[int]]:
        """The token ids of each text.

        Requests that came together wait for each other before and after it: so each stage of their
        work runs for all of them while its code is in the processor's caches.

        Raises OverloadedError if too much waits already; what comes alone is never too much.
        """
        num_characters = sum(map(len, texts))
        if num_characters <= _MAX_INLINE_CHARACTERS:
            await asyncio.sleep(0)
            token_ids = self._encode(texts, add_special_tokens)
            await asyncio.sleep(0)
            return token_ids
        num_characters += _CHARACTERS_PER_CALL
        if self._num_characters and self._num_characters + num_characters > self._max_characters:
            raise OverloadedError(
                "Too many long prompts wait to be tokenized; try again in a moment.",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        self._num_characters += num_characters
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self._threads, self._encode, texts, add_special_tokens
            )
        finally:
            self._num_characters -= num_characters

    def close(self) -> None:
        """Encodings that have not started are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        if len(texts) == 1:
            return [self._tokenizer.encode(texts[0], add_special_tokens=add_special_tokens)]
        return self._tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
