"""What a server (or any front end) receives from managers.

Shapes: R requests with new tokens, N new tokens of all of them, K top log-probabilities, E vectors
of hidden size D.
"""

from typing import Literal

import msgspec
import numpy as np

from tokasaurus.ipc.messages.to_manager import Shutdown

FinishReason = Literal["stop", "length", "cancelled", "error"]


class ManagerReady(msgspec.Struct, frozen=True, kw_only=True, tag="manager_ready"):
    """A manager takes requests, within these limits."""

    dp_rank: int
    max_model_len: int
    vocab_size: int
    num_kv_tokens: int
    """KV cache size in tokens: one sequence can never be longer."""
    description: str
    hidden_size: int = 0
    """Of embeddings; 0 where the engine makes none."""


class RequestLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Log-probabilities of some of a request's tokens, in order; K >= 0 as it asked."""

    request_id: int
    is_prompt: bool
    logprobs: np.ndarray
    """float32[N_r]"""
    top_ids: np.ndarray
    """int32[N_r, K]"""
    top_logprobs: np.ndarray
    """float32[N_r, K]"""


class RequestFinished(msgspec.Struct, frozen=True, kw_only=True):
    """The one terminal message of a request."""

    request_id: int
    reason: FinishReason
    num_cached_tokens: int = 0
    """Prompt tokens whose KV was found in the cache at first onboarding."""
    stop_token_id: int | None = None
    """The token that ended it when reason is "stop"; it is the last one delivered."""
    num_preemptions: int = 0
    error: str | None = None
    queue_seconds: float | None = None
    """From its arrival at the manager to its first onboarding; None if unknown or never."""
    preempted_at: list[float] = []
    """Seconds from its arrival until it stopped running, each time that it was made to wait."""
    resumed_at: list[float] = []
    """Seconds from its arrival until it ran again, each time; one less if it ended before."""


class EngineOutputs(msgspec.Struct, frozen=True, kw_only=True, tag="outputs", omit_defaults=True):
    """Everything new for one server from one manager loop."""

    dp_rank: int
    request_ids: np.ndarray
    """int64[R]"""
    num_tokens: np.ndarray
    """int32[R]"""
    token_ids: np.ndarray
    """int32[N], in the order of `request_ids`"""
    logprobs: list[RequestLogprobs] = []
    """Only for requests that asked; entries for the same request are in order."""
    finished: list[RequestFinished] = []
    """Their tokens are in this message or an earlier one."""
    embedding_ids: np.ndarray | None = None
    """int64[E]: requests that end in this message with a vector; None: none."""
    embeddings: np.ndarray | None = None
    """float32[E, D], not normalised"""


class ManagerStats(msgspec.Struct, frozen=True, kw_only=True, tag="manager_stats"):
    """Sent about once a second while something runs, and once when everything is idle."""

    dp_rank: int
    num_queued: int
    num_running: int
    num_blocks: int
    num_blocks_in_use: int
    """Referenced by a running sequence."""
    num_blocks_cached: int
    """Unreferenced, but still holding a reusable prefix."""
    num_steps: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    num_preemptions: int
    worker_wait_seconds: float
    worker_execute_seconds: float
    """Counters are totals since start."""
    device_idle_seconds: float = 0.0
    device_busy_seconds: float = 0.0
    """Both 0 where the device is a CPU."""
    num_recompiles: int = 0
    bubble_seconds: float = 0.0
    """Of `worker_execute_seconds`: the last pipeline stage waited for the others."""
    hydragen_share: float = 0.0
    """Of the KV tokens that the last decodes attended to, those in prefixes read once per group."""


class PeerQuestion(msgspec.Struct, frozen=True, kw_only=True, tag="peer_question"):
    """From another server of the engine; exactly one `PeerAnswer` goes back to it."""

    server_index: int
    """Who asks."""
    question_id: int
    name: str
    payload: bytes = b""


class PeerAnswer(msgspec.Struct, frozen=True, kw_only=True, tag="peer_answer"):
    """To the question of that id."""

    question_id: int
    payload: bytes = b""
    has_failed: bool = False


ToServer = ManagerReady | EngineOutputs | ManagerStats | Shutdown | PeerQuestion | PeerAnswer
