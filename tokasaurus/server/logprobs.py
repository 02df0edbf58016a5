"""Log-probabilities of tokens in the two forms that OpenAI's API has, and prompts' in vLLM's."""

import math
from collections.abc import Sequence

from tokasaurus.server.generation import Generation, TokenLogprob
from tokasaurus.server.schemas.chat_completions import (
    ChatLogprobs,
    ChatTokenLogprob,
    TopLogprob,
)
from tokasaurus.server.schemas.completions import CompletionLogprobs
from tokasaurus.server.schemas.prompt_logprobs import PromptLogprob, PromptLogprobs
from tokasaurus.tokenization.detokenizer import Detokenizer
from tokasaurus.tokenization.tokenizer import Tokenizer

_LOWEST = -9999.0
"""Stands for minus infinity, which JSON can't say."""


def finite(logprob: float) -> float:
    """A number that JSON can say; NaN counts as impossible too."""
    return max(logprob, _LOWEST) if math.isfinite(logprob) else _LOWEST


def chat_logprobs(
    entries: Sequence[TokenLogprob], tokenizer: Tokenizer, *, as_ids: bool = False
) -> ChatLogprobs:
    """Tokens that are only a part of a character show as U+FFFD; their bytes are exact.

    `as_ids`: they show as their ids.
    """

    def top(token_id: int, logprob: float) -> TopLogprob:
        data = tokenizer.token_bytes(token_id)
        token = _shown_id(token_id) if as_ids else data.decode(errors="replace")
        return TopLogprob(token, finite(logprob), list(data))

    content = []
    for entry in entries:
        own = top(entry.token_id, entry.logprob)
        others = [top(token_id, logprob) for token_id, logprob in entry.top]
        content.append(ChatTokenLogprob(own.token, own.logprob, own.bytes, others))
    return ChatLogprobs(content)


def prompt_logprobs(generation: Generation, tokenizer: Tokenizer) -> PromptLogprobs:
    """Of all tokens of its prompt."""

    def shown(token_id: int, logprob: float, rank: int | None) -> PromptLogprob:
        text = tokenizer.token_bytes(token_id).decode(errors="replace")
        return PromptLogprob(finite(logprob), rank, text)

    scores: PromptLogprobs = [None]
    for entry in generation.prompt_logprobs:
        likely = {str(i): shown(i, p, rank) for rank, (i, p) in enumerate(entry.top, 1)}
        own = str(entry.token_id)
        chosen = likely.get(own) or shown(entry.token_id, entry.logprob, None)
        scores.append({own: chosen} | likely)
    return scores


class CompletionLogprobsBuilder:
    """For one choice, whose tokens come in order; text offsets go on from call to call."""

    def __init__(
        self, tokenizer: Tokenizer, detokenizer: Detokenizer, *, as_ids: bool = False
    ) -> None:
        """`detokenizer` is a fresh one for the choice's text.

        `as_ids`: tokens show as their ids.
        """
        self._as_ids = as_ids
        self._tokenizer = tokenizer
        self._detokenizer = detokenizer
        self._offset = 0

    def add_unscored(self, token_id: int) -> CompletionLogprobs:
        """A token that nothing came before."""
        offset = self._advance(token_id)
        return CompletionLogprobs([self._show(token_id)], [None], [None], [offset])

    def add(self, entries: Sequence[TokenLogprob]) -> CompletionLogprobs:
        """`top_logprobs` of a token always include its own."""
        return CompletionLogprobs(
            tokens=[self._show(entry.token_id) for entry in entries],
            token_logprobs=[finite(entry.logprob) for entry in entries],
            top_logprobs=[
                {
                    self._show(token_id): finite(logprob)
                    for token_id, logprob in [*entry.top, (entry.token_id, entry.logprob)]
                }
                for entry in entries
            ],
            text_offset=[self._advance(entry.token_id) for entry in entries],
        )

    def _show(self, token_id: int) -> str:
        """As OpenAI does: parts of characters in the form bytes:\\xf0\\x9f, so that they differ."""
        if self._as_ids:
            return _shown_id(token_id)
        data = self._tokenizer.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _advance(self, token_id: int) -> int:
        start = self._offset
        self._offset += len(self._detokenizer.push((token_id,)))
        return start


def _shown_id(token_id: int) -> str:
    """In vLLM's form, which no token's text is mistaken for."""
    return f"token_id:{token_id}"


def joined(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    """Those of `first`, then those of `second`."""
    return CompletionLogprobs(
        first.tokens + second.tokens,
        first.token_logprobs + second.token_logprobs,
        first.top_logprobs + second.top_logprobs,
        first.text_offset + second.text_offset,
    )
