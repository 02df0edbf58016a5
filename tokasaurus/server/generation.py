"""One sample in flight as a front end sees it: its tokens so far, and what of it is news."""

import time
from collections.abc import Sequence
from itertools import zip_longest
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from tokasaurus.errors import EngineFailedError
from tokasaurus.ipc.messages.to_manager import GenerateRequest
from tokasaurus.ipc.messages.to_server import RequestFinished, RequestLogprobs
from tokasaurus.server.request_tracing import begin_sample
from tokasaurus.server.sampling_params import SamplingParams
from tokasaurus.tokenization.detokenizer import Detokenizer
from tokasaurus.tokenization.stop_strings import StopMatcher

FinishReason = Literal["stop", "length", "cancelled", "error"]

_WITHOUT_SCORES = ("cancelled", "error")
"""Ends of which nobody is told what the prompt's scores are."""


class TokenLogprob(NamedTuple):
    """Log-probability of a token, and of the most likely ones in its place, in order."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


class Delta(msgspec.Struct):
    """What is new since the last `Generation.take`."""

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob]
    """One per token id if the request asked for them, else empty."""


class Generation:
    """Fed by the engine client, read by whoever submitted the request."""

    __slots__ = (
        "_detokenizer",
        "_logprobs",
        "_matcher",
        "_num_scores",
        "_num_taken_tokens",
        "_stop_ids",
        "_texts",
        "cumulative_logprob",
        "discards_output",
        "dp_rank",
        "embedding",
        "error",
        "finish_reason",
        "first_token_at",
        "index",
        "is_cancelled",
        "last_token_at",
        "num_cached_tokens",
        "num_preemptions",
        "output_ids",
        "params",
        "preemptions",
        "prompt_logprobs",
        "request",
        "stop_reason",
        "submitted_at",
        "trace",
    )

    def __init__(
        self,
        index: int,
        request: GenerateRequest,
        params: SamplingParams,
        dp_rank: int,
        detokenizer: Detokenizer,
        prompt_logprobs: list[TokenLogprob],
    ) -> None:
        """`prompt_logprobs`: the samples of a prompt share it; one of them scores the prompt."""
        self.index = index
        """Its place among the samples that were submitted together: prompt by prompt."""
        self.request = request
        self.params = params
        self.dp_rank = dp_rank
        self.discards_output = params.max_tokens == 0
        self.output_ids: list[int] = []
        self.cumulative_logprob = 0.0
        """Of `output_ids`, if the request asked for log-probabilities."""
        self.prompt_logprobs = prompt_logprobs
        """Of the prompt's tokens from the second on, as far as the sample that scores it, the
        prompt's first, has come."""
        self._num_scores = 0 if params.prompt_logprobs is None else len(request.prompt_ids) - 1
        self.embedding: np.ndarray | None = None
        """float32[D], not normalised: what a request with `pooling` ends with."""
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        """Which of `params.stop` or `params.stop_token_ids` ended it, if one of them did."""
        self.error: EngineFailedError | None = None
        """Why it failed, if `finish_reason` is "error"."""
        self.num_cached_tokens = 0
        self.num_preemptions = 0
        self.preemptions: list[tuple[float, float | None]] = []
        """Seconds from `submitted_at`: when it lost its seat, and when it ran again."""
        self.is_cancelled = False
        self.submitted_at = time.monotonic()
        self.first_token_at: float | None = None
        """When its first output token arrived here, by the monotonic clock."""
        self.last_token_at: float | None = None
        """When metrics last counted tokens of it."""
        self.trace = begin_sample(params)
        """To be told when its manager has let go of it; None if its request isn't traced."""
        self._detokenizer = detokenizer
        self._stop_ids = request.stop_token_ids
        self._matcher = (
            StopMatcher(params.stop, include_stop=params.include_stop_str_in_output)
            if params.stop
            else None
        )
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._num_taken_tokens = 0

    @property
    def is_stopped(self) -> bool:
        """A stop string was found; whatever else comes is dropped."""
        return self._matcher is not None and self._matcher.matched is not None

    @property
    def has_news(self) -> bool:
        """Something that a client sees is there to be taken."""
        return bool(self._texts or self._logprobs) or self.finish_reason is not None

    @property
    def awaits_scores(self) -> bool:
        """Its news would be without scores of its prompt that another sample still computes."""
        return (
            len(self.prompt_logprobs) < self._num_scores
            and self.finish_reason not in _WITHOUT_SCORES
        )

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_ids)

    def take(self) -> Delta:
        """Everything since the last call."""
        delta = Delta(
            "".join(self._texts), self.output_ids[self._num_taken_tokens :], self._logprobs
        )
        self._texts, self._logprobs = [], []
        self._num_taken_tokens = len(self.output_ids)
        return delta

    def take_text(self) -> str | None:
        """Like `take`, for who wants nothing but text; None, and nothing taken, if there is more to
        tell: log-probabilities, or the end."""
        if self.finish_reason is not None or self._logprobs:
            return None
        texts, self._texts = self._texts, []
        self._num_taken_tokens = len(self.output_ids)
        return texts[0] if len(texts) == 1 else "".join(texts)

    def add_prompt_logprobs(self, logprobs: RequestLogprobs) -> None:
        first = 1 + len(self.prompt_logprobs)
        ids = self.request.prompt_ids[first : first + len(logprobs.logprobs)].tolist()
        self.prompt_logprobs += _pair(ids, [logprobs])

    def add_tokens(self, token_ids: list[int], logprobs: Sequence[RequestLogprobs] = ()) -> None:
        """Tokens as drawn. If this makes it `is_stopped`, its sequence is to be cancelled."""
        if self.discards_output or self.is_cancelled:
            return
        if self._matcher is not None and self._matcher.matched is not None:
            return
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()
        num_used = self._add_text(token_ids)
        self.output_ids += token_ids if num_used == len(token_ids) else token_ids[:num_used]
        if logprobs:
            paired = _pair(token_ids, logprobs)[:num_used]
            self.cumulative_logprob += sum(entry.logprob for entry in paired)
            self._logprobs += paired

    def finish(self, finished: RequestFinished) -> None:
        """Its sequence has ended; all its tokens were added before."""
        self.num_cached_tokens = finished.num_cached_tokens
        self.num_preemptions = finished.num_preemptions
        self.preemptions = list(zip_longest(finished.preempted_at, finished.resumed_at))
        if self.finish_reason is not None:
            return
        if self.discards_output and finished.reason in ("stop", "length"):
            self.finish_reason = "length"
            return
        self._flush_text()
        if self.is_stopped:
            assert self._matcher is not None
            self.finish_reason, self.stop_reason = "stop", self._matcher.matched
        elif finished.reason in ("stop", "length"):
            self.finish_reason = finished.reason
            if finished.stop_token_id in self.params.stop_token_ids:
                self.stop_reason = finished.stop_token_id
        else:
            self.fail(EngineFailedError(finished.error or f"The request was {finished.reason}."))

    def cancel(self) -> None:
        """Nobody wants the rest."""
        self.is_cancelled = True
        self.finish_reason = "cancelled"

    def fail(self, error: EngineFailedError) -> None:
        """It can't be finished; whatever else comes is dropped."""
        if self.finish_reason is None:
            self.is_cancelled = True
            self.finish_reason, self.error = "error", error

    def _add_text(self, token_ids: list[int]) -> int:
        """Returns how many of the tokens come before the end that a stop string sets."""
        visible: Sequence[int] = token_ids
        if (
            token_ids
            and token_ids[-1] in self._stop_ids
            and not self.params.include_stop_str_in_output
        ):
            visible = token_ids[:-1]
        if self._matcher is None:
            if text := self._detokenizer.push(visible):
                self._texts.append(text)
            return len(token_ids)
        for count, token_id in enumerate(visible, 1):
            text = self._detokenizer.push((token_id,))
            if text and len(self.output_ids) + count > self.params.min_tokens:
                text = self._matcher.push(text)
            if text:
                self._texts.append(text)
            if self.is_stopped:
                return count
        return len(token_ids)

    def _flush_text(self) -> None:
        if self.is_stopped:
            return
        text = self._detokenizer.flush()
        if self._matcher is not None:
            text = self._matcher.push(text)
            if not self.is_stopped:
                text += self._matcher.flush()
        if text:
            self._texts.append(text)


def _pair(token_ids: list[int], logprobs: Sequence[RequestLogprobs]) -> list[TokenLogprob]:
    rows = [
        row
        for part in logprobs
        for row in zip(
            part.logprobs.tolist(),
            part.top_ids.tolist(),
            part.top_logprobs.tolist(),
            strict=True,
        )
    ]
    return [
        TokenLogprob(token_id, logprob, list(zip(top_ids, top_logprobs, strict=True)))
        for token_id, (logprob, top_ids, top_logprobs) in zip(token_ids, rows, strict=True)
    ]
