"""POST /v1/completions."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import ConfigDict, Field, WithJsonSchema

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.sampling_params import MAX_N, SamplingParams, shown
from tokasaurus.server.schemas.prompt_logprobs import PromptLogprobs
from tokasaurus.server.schemas.sampling_fields import SamplingFields
from tokasaurus.server.schemas.usage import Usage

_TOKEN_IDS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
        _TOKEN_IDS_SCHEMA,
        {"type": "array", "items": _TOKEN_IDS_SCHEMA, "minItems": 1},
    ]
}


class CompletionRequest(SamplingFields):
    model_config = ConfigDict(title="CompletionRequest")

    prompt: Annotated[Any, WithJsonSchema(_PROMPT_SCHEMA)]
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = Field(
        None,
        description="Draw this many samples per prompt, and answer with the n likeliest.",
        json_schema_extra={"minimum": 1, "maximum": MAX_N},
    )

    def sampling_params(self) -> SamplingParams:
        """Of all samples that are drawn. Raises InvalidRequestError for values out of range."""
        values = self.sampling_values() | {"logprobs": self.logprobs}
        if self.echo and self.logprobs is not None:
            if self.prompt_logprobs not in (None, self.logprobs):
                raise InvalidRequestError(
                    "'logprobs' with 'echo' scores the prompt, too; give 'prompt_logprobs' the "
                    "same number, or leave it out.",
                    param="prompt_logprobs",
                )
            values["prompt_logprobs"] = self.logprobs
        params = SamplingParams(**values)
        if self.best_of is None or self.best_of == params.n:
            return params
        self._check_best_of(self.best_of, params.n)
        num_logprobs = 0 if self.logprobs is None else self.logprobs
        return msgspec.structs.replace(params, n=self.best_of, logprobs=num_logprobs)

    def _check_best_of(self, best_of: int, n: int) -> None:
        if not n < best_of <= MAX_N:
            raise InvalidRequestError(
                f"'best_of' must be between 'n' ({n}) and {MAX_N}, not {shown(best_of)}.",
                param="best_of",
            )
        if self.stream:
            raise InvalidRequestError(
                "'best_of' above 'n' can't be streamed: the best are known at the end only.",
                param="best_of",
            )


class CompletionLogprobs(msgspec.Struct):
    """One entry per token; the first token of a prompt has no log-probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    """Where each token starts in the choice's text, in characters."""


class CompletionChoice(msgspec.Struct, kw_only=True):
    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class Completion(msgspec.Struct, kw_only=True):
    """Also the shape of a stream's chunks."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
