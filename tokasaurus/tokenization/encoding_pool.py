"""Tokenizes for an event loop: short texts on it, long ones on threads (the GIL is released)."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tokasaurus.tokenization.tokenizer import Tokenizer

_MAX_INLINE_CHARACTERS = 512
"""Encoding these takes well under a millisecond, about what handing them to a thread costs."""


class EncodingPool:
    """`num_threads` bounds how many long prompts are encoded at a time; others wait their turn."""

    def __init__(self, tokenizer: Tokenizer, *, num_threads: int = 2) -> None:
        self._tokenizer = tokenizer
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="tokenize")

    async def encode(
        self, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> list[list[int]]:
        """The token ids of each text.

        Requests that came together wait for each other before and after it: so each stage of their
        work runs for all of them while its code is in the processor's caches.
        """
        if sum(map(len, texts)) <= _MAX_INLINE_CHARACTERS:
            await asyncio.sleep(0)
            token_ids = self._encode(texts, add_special_tokens)
            await asyncio.sleep(0)
            return token_ids
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._encode, texts, add_special_tokens)

    def close(self) -> None:
        """Encodings that have not started are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        if len(texts) == 1:
            return [self._tokenizer.encode(texts[0], add_special_tokens=add_special_tokens)]
        return self._tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
