"""`truncate_prompt_tokens`: keep only the end of a prompt that is too long."""

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.request_building import ModelLimits
from tokasaurus.server.sampling_params import shown


def truncated(
    prompt_ids: list[int],
    max_tokens_kept: int | None,
    limits: ModelLimits,
    *,
    max_output_tokens: int | None,
    min_output_tokens: int = 1,
) -> list[int]:
    """The last `max_tokens_kept` ids; -1: as many as leave room for the output; None: all.

    `min_output_tokens` have to fit in any case. Raises InvalidRequestError for other numbers.
    """
    if max_tokens_kept is None:
        return prompt_ids
    longest = limits.max_model_len - min_output_tokens
    if max_tokens_kept == -1:
        room = limits.max_model_len - max(min_output_tokens, max_output_tokens or 0)
        return prompt_ids[-max(1, room) :]
    if not 1 <= max_tokens_kept <= longest:
        raise InvalidRequestError(
            f"'truncate_prompt_tokens' must be -1 or between 1 and {longest}, not "
            f"{shown(max_tokens_kept)}.",
            param="truncate_prompt_tokens",
        )
    return prompt_ids[-max_tokens_kept:]
