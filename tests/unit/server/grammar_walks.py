"""Random texts that a grammar allows, token by token, as a worker's masks have it."""

import random
from collections.abc import Sequence

import numpy as np
import tokenizers
from tokenizers import AddedToken

from tests.unit.server.tiny_server import TOKENIZER
from tokasaurus.tokenization.tokenizer import Tokenizer
from tokasaurus.worker.grammar_tokens import GrammarState, GrammarTokens

VOCAB_SIZE = 450
END = 1


def tokenizer_with(*, special: Sequence[str] = (), plain: Sequence[str] = ()) -> Tokenizer:
    """Also has these tokens."""
    backend = tokenizers.Tokenizer.from_str(TOKENIZER._backend.to_str())
    backend.add_special_tokens([AddedToken(text, special=True) for text in special])
    backend.add_tokens([AddedToken(text, normalized=False) for text in plain])
    return Tokenizer(backend, {"eos_token": "</s>", "bos_token": "<s>"})


class GrammarWalker:
    """Walks one grammar at a time."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens = GrammarTokens(tokenizer, VOCAB_SIZE)

    def start(self, grammar: str) -> GrammarState:
        state = GrammarState(self._tokens, grammar, (END,))
        state.update()
        return state

    def walk(self, grammar: str, seed: int, longest: int = 400) -> str | None:
        """None if it did not end. Likes ends, and what closes things."""
        state, generator, text = self.start(grammar), random.Random(seed), b""
        for _ in range(longest):
            choices = allowed(state)
            assert choices, f"nothing can follow {text!r}"
            token = self._drawn(choices, generator)
            if token == END:
                return text.decode(errors="replace")
            text += self._tokenizer.token_bytes(token)
            state.consume([token])
            state.update()
        return None

    def accepts(self, grammar: str, text: str) -> bool:
        """Whole, as the tokenizer cuts it."""
        state = self.start(grammar)
        for token in self._tokenizer.encode(text, add_special_tokens=False):
            if token not in allowed(state):
                return False
            state.consume([token])
            state.update()
        return END in allowed(state)

    def _drawn(self, choices: set[int], generator: random.Random) -> int:
        if END in choices and generator.random() < 0.3:
            return END
        closing = [i for i in sorted(choices) if self._tokenizer.token_bytes(i)[-1:] in b'"}]>']
        if closing and generator.random() < 0.3:
            return generator.choice(closing)
        return generator.choice(sorted(choices))


def allowed(state: GrammarState) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(state.mask, bitorder="little")).tolist())
