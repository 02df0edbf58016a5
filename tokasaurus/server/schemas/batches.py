"""/v1/batches: requests from a file, answered into files."""

from typing import Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

BatchStatus = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
ACTIVE_STATUSES = frozenset({"validating", "in_progress", "finalizing", "cancelling"})
"""Something remains to be done."""


class BatchRequest(BaseModel):
    model_config = ConfigDict(title="BatchRequest", strict=True, extra="forbid")

    input_file_id: str
    endpoint: str
    completion_window: str = Field(
        description="Time after which what is not done expires, such as 24h, 90m or 7d."
    )
    metadata: dict[str, str] | None = None


class LineError(msgspec.Struct, kw_only=True):
    """What is wrong with a line of the input file, counted from 1; None: with all of it."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchErrors(msgspec.Struct):
    data: list[LineError]
    object: Literal["list"] = "list"


class RequestCounts(msgspec.Struct):
    total: int = 0
    completed: int = 0
    failed: int = 0


class Batch(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str
    status: BatchStatus = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = msgspec.field(default_factory=RequestCounts)
    metadata: dict[str, str] | None = None

    @property
    def is_active(self) -> bool:
        return self.status in ACTIVE_STATUSES


class BatchList(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ItemResponse(msgspec.Struct):
    status_code: int
    request_id: str
    body: msgspec.Raw


class ItemError(msgspec.Struct):
    code: str
    message: str


class ResultLine(msgspec.Struct, kw_only=True):
    """A line of an output or error file: either a response or an error."""

    id: str
    custom_id: str
    response: ItemResponse | None = None
    error: ItemError | None = None
