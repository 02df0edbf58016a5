"""Grammars over the model's vocabulary: compiled once each, matched token by token.

llguidance sees a vocabulary with one entry more than the model's, which stands for the end of the
text. So it never confuses the end with a token; which tokens end a request is the request's matter.
"""

import logging
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from tokasaurus.tokenization.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

_logger = logging.getLogger(__name__)

_MAX_COMPILED = 128


class GrammarTokens:
    """Makes matchers. Not thread-safe; building one walks the whole vocabulary."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        from llguidance import LLTokenizer, TokenizerWrapper

        self.vocab_size = vocab_size
        self._tokens = LLTokenizer(
            TokenizerWrapper(_Vocabulary(tokenizer, vocab_size)),
            n_vocab=vocab_size + 1,
            eos_token=vocab_size,
        )
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    @property
    def num_mask_words(self) -> int:
        """32-bit words of a mask of llguidance's vocabulary."""
        return -(-(self.vocab_size + 1) // 32)

    def matcher(self, grammar: str) -> "LLMatcher":
        """At the start of the text. What can't be compiled gives one in its error state."""
        from llguidance import LLMatcher

        compiled = self._compiled.get(grammar)
        if compiled is None:
            compiled = self._compiled[grammar] = LLMatcher(self._tokens, grammar, log_level=0)
            if len(self._compiled) > _MAX_COMPILED:
                self._compiled.popitem(last=False)
            if compiled.is_error():
                _logger.error("a grammar can't be compiled: %s", compiled.get_error()[:500])
        self._compiled.move_to_end(grammar)
        return compiled.deep_copy()


class _Vocabulary:
    """What llguidance asks a tokenizer for."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = vocab_size
        self.tokens = [tokenizer.token_bytes(i) for i in range(vocab_size)] + [b""]
        inside = [i for i in tokenizer.special_token_ids if i < vocab_size]
        self.special_token_ids = [*inside, vocab_size]

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode(errors="ignore")
        return self._tokenizer.encode(text, add_special_tokens=False)


class GrammarState:
    """Where one sequence's text is in its grammar. `mask` is what may be drawn next."""

    __slots__ = ("_end_bits", "_end_token_ids", "_has_ended", "_matcher", "_tokens", "mask",
                 "must_end")  # fmt: skip

    def __init__(self, tokens: GrammarTokens, grammar: str, end_token_ids: tuple[int, ...]) -> None:
        self._tokens = tokens
        self._matcher = tokens.matcher(grammar)
        self._end_token_ids = frozenset(end_token_ids)
        self._end_bits = np.zeros(tokens.num_mask_words * 4, np.uint8)
        for token_id in self._end_token_ids:
            if 0 <= token_id < tokens.vocab_size:
                self._end_bits[token_id // 8] |= np.uint8(1 << token_id % 8)
        self._has_ended = False
        self.mask = np.zeros_like(self._end_bits)
        """uint8: as in `Adjustment.allowed`. A new array at every `update`."""
        self.must_end = False
        """Nothing but the end may come, even where `min_tokens` asks for more."""

    def consume(self, token_ids: list[int]) -> None:
        """The sequence has drawn these. Negative ones stand for no token."""
        for token_id in token_ids:
            if token_id in self._end_token_ids:
                self._has_ended = True
            elif token_id >= 0 and not self._has_ended and not self._matcher.is_stopped():
                self._matcher.consume_token(token_id)

    def update(self) -> None:
        """Compute `mask` and `must_end` for the next token."""
        if self._has_ended:
            self.mask, self.must_end = self._end_bits, True
            return
        mask = np.zeros(self._tokens.num_mask_words, np.uint32)
        if not self._matcher.is_error():
            self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self._matcher.is_error():
            _logger.error("a grammar can't be matched: %s", self._matcher.get_error()[:500])
            mask[:] = 0
        bits = mask.view(np.uint8)
        end_byte, end_bit = divmod(self._tokens.vocab_size, 8)
        # Where a special token may come next, llguidance's masks have the end in any case.
        may_end = bool(bits[end_byte] >> end_bit & 1) and self._matcher.is_accepting()
        bits[end_byte] &= ~np.uint8(1 << end_bit)
        self.must_end = may_end and not bits.any()
        if may_end:
            bits |= self._end_bits
        self.mask = bits
