"""Log-probabilities of a prompt's tokens, in the form of vLLM's `prompt_logprobs`."""

import msgspec


class PromptLogprob(msgspec.Struct):
    logprob: float
    rank: int | None
    """1 is the most likely one; null for a token that is none of the most likely ones asked for."""
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""Per token, by token id: the token itself and the most likely ones; null for the first token."""
