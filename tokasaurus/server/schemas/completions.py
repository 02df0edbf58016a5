"""POST /v1/completions."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import ConfigDict, WithJsonSchema

from tokasaurus.server.sampling_params import SamplingParams
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

    def sampling_params(self) -> SamplingParams:
        """Raises InvalidRequestError for values out of range."""
        values = self.sampling_values() | {"logprobs": self.logprobs}
        if self.echo and self.logprobs is not None:
            values["prompt_logprobs"] = self.logprobs
        return SamplingParams(**values)


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


class Completion(msgspec.Struct, kw_only=True):
    """Also the shape of a stream's chunks."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
