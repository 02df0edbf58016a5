"""The fields that completions and chat completions share; null always means the default."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.sampling_params import INTEGER_RANGES, NUMBER_RANGES, SamplingParams
from tokasaurus.server.schemas.structured_fields import (
    GUIDED_FIELDS,
    RESPONSE_FORMAT_SCHEMA,
    SCHEMA_FIELD_SCHEMA,
    STRUCTURED_OUTPUTS_SCHEMA,
    structured_output,
)
from tokasaurus.server.schemas.unsupported_fields import (
    describe_extra_fields,
    refuse_unsupported,
)

_STOP_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}},
        {"type": "null"},
    ]
}
_TOKEN_ID_KEYS: dict[str, Any] = {
    "propertyNames": {"pattern": "^[0-9]{1,19}$"},
    "additionalProperties": {"minimum": -100, "maximum": 100},
}


def describe_ranges(schema: dict[str, Any]) -> None:
    """Adds to a request's JSON schema what SamplingParams takes of its numbers."""
    for name, (low, high) in (INTEGER_RANGES | NUMBER_RANGES).items():
        field = schema["properties"].get(name)
        if field is not None and {"type": "boolean"} not in field.get("anyOf", ()):
            field |= {"minimum": low, "maximum": high}


class StreamOptions(BaseModel):
    """`include_usage`: a last chunk says how many tokens were used."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Accepted, and nothing to do: no padding is ever added."""


def _describe(schema: dict[str, Any]) -> None:
    """Adds what the types of the fields don't say."""
    describe_ranges(schema)
    describe_extra_fields(schema)


class SamplingFields(BaseModel):
    """Ranges are checked by SamplingParams, so that HTTP and Python agree."""

    model_config = ConfigDict(
        strict=True, extra="allow", title="SamplingFields", json_schema_extra=_describe
    )

    model: str | None = Field(None, description="Default: the model that this server serves.")
    n: int | None = Field(None, description="Samples per prompt.")
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = Field(None, description="0 or -1: all tokens.")
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = Field(
        None, description="Token id: bias of -100 to 100.", json_schema_extra=_TOKEN_ID_KEYS
    )
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = Field(None, description="Empty: all tokens.")
    response_format: Annotated[Any, WithJsonSchema(RESPONSE_FORMAT_SCHEMA)] = None
    structured_outputs: Annotated[Any, WithJsonSchema(STRUCTURED_OUTPUTS_SCHEMA)] = None
    guided_json: Annotated[Any, WithJsonSchema(SCHEMA_FIELD_SCHEMA)] = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = Field(None, json_schema_extra={"minItems": 1})
    guided_grammar: str | None = None
    prompt_logprobs: int | None = Field(
        None, description="Score the prompt, with so many of the most likely tokens."
    )
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: Annotated[Any, WithJsonSchema(_STOP_SCHEMA)] = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    return_tokens_as_token_ids: bool | None = Field(
        None, description="Beside log-probabilities, tokens show as token_id:ID."
    )
    add_special_tokens: bool | None = Field(
        None, description="Put BOS and the like around the prompt; chat templates do it themselves."
    )
    truncate_prompt_tokens: int | None = Field(
        None, description="Keep only this many of the prompt's last tokens; -1: what fits."
    )
    priority: int | None = Field(None, description="Lower runs earlier.")
    timeout: float | None = Field(
        None, description="Seconds until the request is given up with a 504."
    )
    cache_salt: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def includes_usage(self) -> bool:
        """The stream ends with a chunk of token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def check(self) -> None:
        """Raises InvalidRequestError for fields that can't be honoured."""
        if self.model_extra:
            refuse_unsupported(self.model_extra, set(type(self).model_fields))
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError(
                "'stream_options' may only be given when 'stream' is true.", param="stream_options"
            )
        if self.prompt_logprobs is not None and self.stream:
            raise InvalidRequestError(
                "'prompt_logprobs' can't be streamed; leave 'stream' out.", param="prompt_logprobs"
            )

    def sampling_values(self) -> dict[str, Any]:
        """The arguments for SamplingParams that the client gave and that need no translation."""
        given, fields = self.model_fields_set, self.__dict__
        values = {
            name: value for name in given & _SAMPLING_NAMES if (value := fields[name]) is not None
        }
        if not given.isdisjoint(_STRUCTURED_NAMES):
            asked = {n: v for n in _STRUCTURED_NAMES if (v := fields[n]) is not None}
            if asked and (output := structured_output(asked)) is not None:
                values["structured_output"] = output
        return values


_STRUCTURED_NAMES = ("response_format", "structured_outputs", *GUIDED_FIELDS)
_SAMPLING_NAMES = frozenset(SamplingFields.model_fields.keys() & SamplingParams.__struct_fields__)
