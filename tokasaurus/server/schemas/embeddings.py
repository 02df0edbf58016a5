"""POST /v1/embeddings."""

from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

_TOKEN_IDS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_INPUT_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
        _TOKEN_IDS_SCHEMA,
        {"type": "array", "items": _TOKEN_IDS_SCHEMA, "minItems": 1},
    ]
}


class EmbeddingRequest(BaseModel):
    """Vectors of texts, each of length 1."""

    model_config = ConfigDict(strict=True, extra="forbid", title="EmbeddingRequest")

    model: str | None = None
    input: Annotated[Any, WithJsonSchema(_INPUT_SCHEMA)]
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="Numbers, or their little-endian float32 bytes. Default: float."
    )
    dimensions: int | None = Field(
        None, description="Keep so many of the vector's first numbers, scaled to length 1 again."
    )
    pooling: Literal["mean", "last"] | None = Field(
        None,
        description="Mean of all final hidden states, or the last one. Default: the checkpoint's, "
        "else mean.",
    )
    add_special_tokens: bool | None = Field(None, description="Default: true.")
    truncate_prompt_tokens: int | None = Field(
        None, description="Keep only so many of each input's last tokens; -1: as many as fit."
    )
    priority: int | None = None
    timeout: float | None = Field(None, description="Seconds until it is given up.")
    cache_salt: str | None = None
    user: str | None = Field(None, description="Accepted, without effect.")


class Embedding(msgspec.Struct, kw_only=True):
    object: str = "embedding"
    index: int
    embedding: list[float] | str
    """Or the base64 of little-endian float32."""


class EmbeddingUsage(msgspec.Struct, kw_only=True):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, kw_only=True):
    object: str = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
