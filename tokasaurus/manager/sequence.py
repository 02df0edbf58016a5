"""A request on its way through the manager: what is not hot, with its length arithmetic.

What changes with every token of a running sequence lives in the `SlotTable`.
"""

import zlib
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

import numpy as np

from tokasaurus.ipc.messages.to_manager import GenerateRequest

SERVER_INDEX_SHIFT = 48
"""The index of a request's server stands in the bits of its id from here up."""

_GOLDEN_RATIO = (5**0.5 - 1) / 2
_Count = TypeVar("_Count", int, np.ndarray)


class SequenceState(Enum):
    QUEUED = "queued"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    FINISHED = "finished"


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """One request. `token_ids` are all tokens that were known when it was last queued."""

    request: GenerateRequest
    arrival: int
    """Rises with every request; what is older goes first and is preempted last."""
    token_ids: np.ndarray
    """int32: prompt, then outputs from before a preemption or recovery."""
    kind: int
    """Sequences of one kind are likely to stop alike."""
    prompt_key: int
    """The same for all samples of a prompt."""
    queued_at: float = 0.0
    """Time of arrival in seconds of the manager's clock."""
    queue_seconds: float | None = None
    """From there until its first chunk was scheduled; None before that."""
    state: SequenceState = SequenceState.QUEUED
    slot: int = -1
    """Its seat while PREFILLING or DECODING."""
    num_matched_blocks: int = 0
    """Blocks at the head of its table that were in the prefix tree before it was onboarded."""
    has_started: bool = False
    """The worker knows its slot."""
    is_preempting: bool = False
    """It leaves its seat as soon as its tokens in flight have arrived."""
    num_cached_tokens: int | None = None
    """Prompt tokens it did not have to compute the first time it ran; None before that."""
    num_preemptions: int = 0
    preempted_at: list[float] = field(default_factory=list)
    """Seconds from its arrival until it stopped running, each time that it was made to wait."""
    resumed_at: list[float] = field(default_factory=list)
    """Seconds from its arrival until its next chunk was scheduled, each time."""
    num_scored_tokens: int = 1
    """Prompt tokens whose log-probabilities are sent or, like the first one's, don't exist."""
    num_prompt_tokens: int = field(init=False)
    max_num_tokens: int = field(init=False)
    """Prompt and outputs when it ends by length."""
    quantile: float = field(init=False)
    """In (0, 1), and spread evenly over any sequences that came one after the other."""
    is_cacheable: bool = field(init=False)
    """Prompt log-probabilities and means need every prompt token computed."""
    num_single_tokens: int = field(init=False)
    """Until it has so many, prompt included, somebody waits for each of them, or the worker does
    more than draw them."""

    def __post_init__(self) -> None:
        request = self.request
        self.num_prompt_tokens = request.prompt_ids.size
        self.max_num_tokens = self.num_prompt_tokens + request.max_tokens
        self.quantile = (self.arrival * _GOLDEN_RATIO + 0.5) % 1.0
        scores_prompt = request.sampling.num_prompt_logprobs >= 0
        self.is_cacheable = not scores_prompt and request.pooling != "mean"
        sampling = request.sampling
        if request.wants_every_token or not sampling.is_plain:
            self.num_single_tokens = self.max_num_tokens
        elif sampling.min_tokens > 0 and sampling.banned_until_min_tokens:
            self.num_single_tokens = self.num_prompt_tokens + sampling.min_tokens
        else:
            self.num_single_tokens = 0

    @classmethod
    def from_request(
        cls, request: GenerateRequest, arrival: int, queued_at: float = 0.0
    ) -> "Sequence":
        token_ids = np.asarray(request.prompt_ids, np.int32)
        if request.output_ids is not None and request.output_ids.size:
            token_ids = np.concatenate([token_ids, request.output_ids], dtype=np.int32)
        # What ends by length alone says nothing about what may stop.
        kind = 2 * zlib.crc32(request.predictor_key.encode()) + bool(request.stop_token_ids)
        return cls(
            request=request,
            arrival=arrival,
            token_ids=token_ids,
            kind=kind,
            prompt_key=zlib.crc32(request.prompt_ids.tobytes()),
            queued_at=queued_at,
        )

    @property
    def request_id(self) -> int:
        return self.request.request_id

    @property
    def has_run_since_it_waited(self) -> bool:
        """A sequence can lose its seat before any of its chunks was scheduled."""
        has_run = self.queue_seconds is not None
        return has_run and len(self.preempted_at) == len(self.resumed_at)

    def max_num_blocks(self, page_size: int) -> int:
        """Blocks when it ends by length."""
        return max_num_blocks(self.max_num_tokens, page_size)

    def num_initial_blocks(self, page_size: int) -> int:
        """Blocks for the tokens that it prefills."""
        return -(-self.token_ids.size // page_size)


def max_num_blocks(max_num_tokens: _Count, page_size: int) -> _Count:
    """Blocks of a sequence that ends by length: the last token drawn is never written."""
    return -(-(max_num_tokens - 1) // page_size)
