"""Token counts of a request."""

import msgspec


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int


class Usage(msgspec.Struct, kw_only=True):
    prompt_tokens: int
    """Each prompt once, however many samples it got."""
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
