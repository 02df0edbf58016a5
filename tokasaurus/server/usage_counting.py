"""How many tokens a request took."""

from collections.abc import Sequence

from tokasaurus.server.generation import Generation
from tokasaurus.server.schemas.usage import PromptTokensDetails, Usage


def count_usage(generations: Sequence[Generation], *, n: int) -> Usage:
    """Of samples in prompt order, `n` per prompt.

    A prompt's later samples find what its first one computed: only what the first found, which is
    the least, was cached before.
    """
    firsts = range(0, len(generations), n)
    num_prompt_tokens = sum(generations[i].num_prompt_tokens for i in firsts)
    num_output_tokens = sum(len(g.output_ids) for g in generations)
    num_cached = sum(min(g.num_cached_tokens for g in generations[i : i + n]) for i in firsts)
    return Usage(
        prompt_tokens=num_prompt_tokens,
        completion_tokens=num_output_tokens,
        total_tokens=num_prompt_tokens + num_output_tokens,
        prompt_tokens_details=PromptTokensDetails(num_cached),
    )
