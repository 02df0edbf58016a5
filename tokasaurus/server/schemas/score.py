"""POST /v1/score."""

from typing import Annotated, Any

import msgspec
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from tokasaurus.server.schemas.usage import Usage

_TEXTS_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
    ]
}


class ScoreRequest(BaseModel):
    """How likely `text_2` is after `text_1`; one of either goes with all of the other."""

    model_config = ConfigDict(strict=True, extra="forbid", title="ScoreRequest")

    model: str | None = None
    text_1: Annotated[Any, WithJsonSchema(_TEXTS_SCHEMA)]
    text_2: Annotated[Any, WithJsonSchema(_TEXTS_SCHEMA)]
    add_special_tokens: bool | None = Field(None, description="Default: true.")
    priority: int | None = None
    cache_salt: str | None = None
    user: str | None = Field(None, description="Accepted, without effect.")


class Score(msgspec.Struct, kw_only=True):
    index: int
    object: str = "score"
    score: float
    """Sum of the log-probabilities of `text_2`'s tokens."""
    num_tokens: int
    """How many they are."""
    is_greedy: bool
    """Each of them is the most likely one in its place."""


class ScoreList(msgspec.Struct, kw_only=True):
    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Score]
    usage: Usage
