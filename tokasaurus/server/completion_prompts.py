"""The `prompt` of a completion request: a text, token ids, or a list of either."""

from collections.abc import Sequence
from typing import Any

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.state import ServerState

MAX_SAMPLES = 4096
"""Prompts times n in one request; more would keep everyone else off the event loop."""


def split_prompts(prompt: Any, *, n: int, param: str = "prompt") -> list[str] | list[list[int]]:
    """All texts, or all token ids. Raises InvalidRequestError for anything else.

    `param` is what the client calls them.
    """
    prompts: list[Any] = prompt if isinstance(prompt, list) else [prompt]
    if isinstance(prompt, list) and set(map(type, prompt)) == {int}:
        prompts = [prompt]
    kinds = set(map(type, prompts))
    if kinds not in ({str}, {list}):
        raise InvalidRequestError(
            f"{param!r} must be a string, a list of token ids, or a list of only strings or only "
            "lists of token ids.",
            param=param,
        )
    if len(prompts) * n > MAX_SAMPLES:
        raise InvalidRequestError(
            f"{param!r} asks for {len(prompts) * n} samples (prompts times 'n'), but one request "
            f"may ask for at most {MAX_SAMPLES}; split it.",
            param=param,
        )
    return prompts


async def encode_prompts(
    prompts: list[str] | list[list[int]], state: ServerState, *, add_special_tokens: bool
) -> Sequence[list[int]]:
    """Token ids of each prompt."""
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if not texts:
        return [prompt for prompt in prompts if isinstance(prompt, list)]
    return await state.encoding_pool.encode(texts, add_special_tokens=add_special_tokens)
