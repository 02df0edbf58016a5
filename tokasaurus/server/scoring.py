"""Log-likelihood of a text after another, from the log-probabilities of prompts."""

from dataclasses import dataclass
from typing import Any

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.completion_prompts import MAX_SAMPLES
from tokasaurus.server.generation import Generation
from tokasaurus.server.logprobs import finite
from tokasaurus.server.schemas.score import Score
from tokasaurus.tokenization.encoding_pool import EncodingPool

_MAX_CHARACTERS = 2**25
"""Of all pairs together: a text that stands in many of them counts in each."""


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """Both texts as one prompt; what is scored starts at `start`, which is at least 1."""

    token_ids: list[int]
    start: int


def text_pairs(text_1: Any, text_2: Any) -> list[tuple[str, str]]:
    """Raises InvalidRequestError for what is no pair, or too many of them."""
    first, second = _texts(text_1, "text_1"), _texts(text_2, "text_2")
    num_pairs = max(len(first), len(second))
    if num_pairs > MAX_SAMPLES:
        raise InvalidRequestError(
            f"'text_2' asks for {num_pairs} scores, but one request may ask for at most "
            f"{MAX_SAMPLES}; split it.",
            param="text_2",
        )
    if len(first) not in (1, num_pairs) or len(second) not in (1, num_pairs):
        raise InvalidRequestError(
            f"'text_1' has {len(first)} texts and 'text_2' {len(second)}; give as many of each, or "
            "one of either.",
            param="text_2",
        )
    firsts = first * num_pairs if len(first) == 1 else first
    seconds = second * num_pairs if len(second) == 1 else second
    num_characters = sum(map(len, firsts)) + sum(map(len, seconds))
    if num_characters > _MAX_CHARACTERS:
        raise InvalidRequestError(
            f"'text_1' and 'text_2' make pairs of {num_characters} characters in all, but one "
            f"request may have at most {_MAX_CHARACTERS}; split 'text_2'.",
            param="text_2",
        )
    return list(zip(firsts, seconds, strict=True))


async def scored_prompts(
    pairs: list[tuple[str, str]], pool: EncodingPool, *, add_special_tokens: bool
) -> list[ScoredPrompt]:
    """Texts are tokenized together, as a model has seen them; tokens across the seam are scored."""
    firsts = list(dict.fromkeys(first for first, _ in pairs))
    encoded = await pool.encode(firsts, add_special_tokens=add_special_tokens)
    contexts = dict(zip(firsts, encoded, strict=True))
    wholes = await pool.encode(
        [first + second for first, second in pairs], add_special_tokens=add_special_tokens
    )
    prompts = []
    for (first, second), whole in zip(pairs, wholes, strict=True):
        context = contexts[first]
        start = _common_prefix(context, whole)
        if start == 0:
            # The first token can't be scored, so it must be the first text's own.
            [rest] = await pool.encode([second], add_special_tokens=False)
            start, whole = len(context), context + rest
        prompts.append(ScoredPrompt(whole, start))
    return prompts


def score_of(prompt: ScoredPrompt, generation: Generation) -> Score:
    """Of a generation that asked for one prompt log-probability."""
    entries = generation.prompt_logprobs[prompt.start - 1 :]
    return Score(
        index=generation.index,
        score=finite(sum(entry.logprob for entry in entries)),
        num_tokens=len(entries),
        is_greedy=all(entry.logprob >= entry.top[0][1] for entry in entries),
    )


def _texts(value: Any, name: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    is_list = isinstance(texts, list) and bool(texts)
    if not is_list or not all(isinstance(text, str) and text for text in texts):
        raise InvalidRequestError(
            f"{name!r} must be a string that is not empty, or a list of them.", param=name
        )
    return texts


def _common_prefix(first: list[int], second: list[int]) -> int:
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))
