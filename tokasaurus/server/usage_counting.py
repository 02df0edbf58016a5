"""How many tokens a request took."""

from collections.abc import Sequence

from tokasaurus.server.generation import Generation
from tokasaurus.server.schemas.usage import PromptTokensDetails, Usage


def count_usage(generations: Sequence[Generation], *, n: int) -> Usage:
    """Of samples in prompt order, `n` per prompt.

    A prompt's later samples find what its first one computed: only what the first found, which is
    the least, was cached before.
    """
    num_prompt_tokens = num_output_tokens = num_cached = 0
    for first in range(0, len(generations), n):
        samples = generations[first : first + n]
        num_prompt_tokens += samples[0].num_prompt_tokens
        num_output_tokens += sum([len(g.output_ids) for g in samples])
        num_cached += min([g.num_cached_tokens for g in samples])
    return Usage(
        prompt_tokens=num_prompt_tokens,
        completion_tokens=num_output_tokens,
        total_tokens=num_prompt_tokens + num_output_tokens,
        prompt_tokens_details=PromptTokensDetails(num_cached),
    )
