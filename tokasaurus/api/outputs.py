"""What generating returns: per prompt a RequestOutput, with one SampleOutput per sample."""

from dataclasses import dataclass, field

import numpy as np

from tokasaurus.server.generation import FinishReason, Generation, TokenLogprob


@dataclass(slots=True, kw_only=True)
class SampleOutput:
    """One continuation of a prompt."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stop_reason: str | int | None
    """The stop string or stop token id that ended it, if one of them did."""
    logprobs: list[TokenLogprob] | None
    """One per token if asked for, else None."""
    num_cached_tokens: int
    """Prompt tokens that did not have to be computed."""
    error: str | None
    """Why this sample failed, when finish_reason is "error"."""
    ttft_seconds: float | None
    """From submission to the first output token; None if there was none."""


@dataclass(slots=True, kw_only=True)
class RequestOutput:
    """What came of one prompt; the short names are those of its first sample."""

    prompt: str | None
    """The prompt's text; None when it was given as token ids."""
    prompt_token_ids: list[int]
    prompt_logprobs: list[TokenLogprob] | None = None
    """Of each prompt token after the first if asked for, else None."""
    outputs: list[SampleOutput] = field(default_factory=list)
    embedding: np.ndarray | None = None
    """float32[D], not normalised, where the prompt's vector was asked for."""

    @property
    def text(self) -> str:
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        return self.outputs[0].finish_reason

    @property
    def logprobs(self) -> list[TokenLogprob] | None:
        return self.outputs[0].logprobs

    @property
    def num_cached_tokens(self) -> int:
        return self.outputs[0].num_cached_tokens


def sample_output(generation: Generation) -> SampleOutput:
    """Of a generation that has finished and of which nothing was taken before."""
    assert generation.finish_reason is not None, f"sample {generation.index} has not finished"
    delta = generation.take()
    first_token_at = generation.first_token_at
    return SampleOutput(
        text=delta.text,
        token_ids=generation.output_ids,
        finish_reason=generation.finish_reason,
        stop_reason=generation.stop_reason,
        logprobs=delta.logprobs if generation.params.logprobs is not None else None,
        num_cached_tokens=generation.num_cached_tokens,
        error=None if generation.error is None else str(generation.error),
        ttft_seconds=None if first_token_at is None else first_token_at - generation.submitted_at,
    )
