"""Turns step outputs into tokens, finish reasons and log-probabilities for the servers."""

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from tokasaurus.errors import ProtocolError
from tokasaurus.ipc.messages.to_manager import PromptLogprobs, StepOutput
from tokasaurus.ipc.messages.to_server import (
    EngineOutputs,
    FinishReason,
    RequestFinished,
    RequestLogprobs,
)
from tokasaurus.manager.running_set import RunningSet
from tokasaurus.manager.sequence import SERVER_INDEX_SHIFT, Sequence
from tokasaurus.manager.step_building import StepInFlight
from tokasaurus.manager.stop_tokens import StopTokens

_NO_IDS = np.empty(0, np.int64)
_NO_TOKENS = np.empty(0, np.int32)

_REASONS_NOT_TO_DRAW = {
    -1: "the model's output for this request is not a number",
    -2: "the request's grammar and bans together leave no token to draw",
}

_Tokens = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Request ids, how many tokens each of them has, and the tokens."""

Finish = Callable[[Sequence, FinishReason, int | None, str | None], None]
"""Ends a sequence: reason, the token that stopped it, and what went wrong."""


class OutputHandler:
    """Applies step outputs to the running set and collects what is new for the servers."""

    def __init__(
        self, dp_rank: int, running: RunningSet, stop_tokens: StopTokens, finish: Finish
    ) -> None:
        self._dp_rank = dp_rank
        self._running = running
        self._stop_tokens = stop_tokens
        self._finish = finish
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        """(request id per row, tokens [R, S] of R passes) of every step since the last message."""
        self._logprobs: list[RequestLogprobs] = []
        self._finished: list[RequestFinished] = []
        self._embeddings: list[tuple[int, np.ndarray]] = []
        """(request id, vector)"""
        self._ones = np.ones(1, np.int32)
        self.num_output_tokens = 0

    def handle(self, step: StepInFlight, output: StepOutput) -> int:
        """Take in the result of `step`, the oldest one in flight; returns its number of passes."""
        passes = _passes(step, output)
        for prompt_logprobs in output.prompt_logprobs:
            self._take_prompt_logprobs(step, prompt_logprobs)
        if step.embedded_epochs:
            self._take_embeddings(step, output)
        num_passes = len(passes)
        row_slots, passes, rows = self._live_rows(step, passes)
        if row_slots.size:
            if num_passes < step.max_passes:
                self._running.take_back(row_slots, step.max_passes - num_passes)
            if output.logprobs is not None:
                self._take_logprobs(output, row_slots, passes[-1], rows)
            self._take_tokens(row_slots, passes)
        return num_passes

    def _take_tokens(self, row_slots: np.ndarray, passes: np.ndarray) -> None:
        """New tokens of live rows, int32[R, S]. Who ends does so with the last pass."""
        slots = self._running.slots
        token_ids = passes[-1]
        is_end = self._stop_tokens.may_stop(token_ids)
        is_end |= slots.num_known[row_slots] + len(passes) >= slots.max_num_tokens[row_slots]
        ends = is_end.nonzero()[0]
        if ends.size and (token_ids[ends] < 0).any():
            if len(passes) > 1:
                self._append(row_slots, passes[:-1])
            ends, row_slots, token_ids = self._fail_broken(ends, row_slots, token_ids)
            if not row_slots.size:
                return
            passes = token_ids[None]
        self._append(row_slots, passes)
        for row in ends.tolist():
            self._end(int(row_slots[row]), int(token_ids[row]))

    def _append(self, row_slots: np.ndarray, passes: np.ndarray) -> None:
        slots = self._running.slots
        if len(passes) == 1:
            slots.append_tokens(row_slots, passes[0])
        else:
            slots.append_passes(row_slots, passes)
        self._parts.append((slots.request_ids[row_slots], passes))
        self.num_output_tokens += passes.size

    def finish(self, finished: RequestFinished) -> None:
        """Pass a request's terminal message on with the next messages."""
        self._finished.append(finished)

    def take_messages(self) -> dict[int, EngineOutputs]:
        """What is new since the last call, by server index."""
        if not (self._parts or self._finished or self._logprobs):
            return {}
        tokens = self._group_tokens()
        if not (self._finished or self._logprobs):
            self._parts = []
            return self._messages_of_tokens(tokens)
        logprobs: dict[int, list[RequestLogprobs]] = defaultdict(list)
        for entry in self._logprobs:
            logprobs[entry.request_id >> SERVER_INDEX_SHIFT].append(entry)
        finished: dict[int, list[RequestFinished]] = defaultdict(list)
        for end in self._finished:
            finished[end.request_id >> SERVER_INDEX_SHIFT].append(end)
        embeddings = self._group_embeddings()
        self._parts, self._logprobs, self._finished = [], [], []
        messages = {}
        for server_index in tokens.keys() | logprobs.keys() | finished.keys():
            ids, counts, token_ids = tokens.get(server_index, (_NO_IDS, _NO_TOKENS, _NO_TOKENS))
            embedding_ids, vectors = embeddings.get(server_index, (None, None))
            messages[server_index] = EngineOutputs(
                dp_rank=self._dp_rank,
                request_ids=ids,
                num_tokens=counts,
                token_ids=token_ids,
                logprobs=logprobs[server_index],
                finished=finished[server_index],
                embedding_ids=embedding_ids,
                embeddings=vectors,
            )
        return messages

    def _messages_of_tokens(self, tokens: dict[int, _Tokens]) -> dict[int, EngineOutputs]:
        """Of a step like most: nobody ends, nothing but tokens is new."""
        messages = {}
        for server_index, (ids, counts, token_ids) in tokens.items():
            messages[server_index] = EngineOutputs(
                dp_rank=self._dp_rank, request_ids=ids, num_tokens=counts, token_ids=token_ids
            )
        return messages

    def _group_tokens(self) -> dict[int, _Tokens]:
        """What is new for each server, by its index."""
        if not self._parts:
            return {}
        ids, passes = self._parts[0]
        servers = ids >> SERVER_INDEX_SHIFT
        first = int(servers[0])
        if len(self._parts) == 1 and np.count_nonzero(servers == first) == ids.size:
            if len(passes) > 1:
                return {first: (ids, np.full(ids.size, len(passes), np.int32), passes.T.ravel())}
            if ids.size > self._ones.size:
                self._ones = np.ones(2 * ids.size, np.int32)
            return {first: (ids, self._ones[: ids.size], passes[0])}
        ids = np.concatenate([np.tile(ids, len(passes)) for ids, passes in self._parts])
        token_ids = np.concatenate([passes.ravel() for _, passes in self._parts])
        order = np.argsort(ids, kind="stable")
        ids, counts = np.unique(ids, return_counts=True)
        servers = ids >> SERVER_INDEX_SHIFT
        token_ids = token_ids[order]
        ends = np.cumsum(counts)
        groups = {}
        for server_index in np.unique(servers).tolist():
            low, high = np.searchsorted(servers, [server_index, server_index + 1])
            begin = ends[low - 1] if low else 0
            groups[server_index] = (
                ids[low:high],
                counts[low:high].astype(np.int32),
                token_ids[begin : ends[high - 1]],
            )
        return groups

    def _group_embeddings(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """(request ids, their vectors) by server index; each of these requests has finished."""
        by_server: dict[int, list[tuple[int, np.ndarray]]] = defaultdict(list)
        for request_id, vector in self._embeddings:
            by_server[request_id >> SERVER_INDEX_SHIFT].append((request_id, vector))
        self._embeddings = []
        return {
            server_index: (
                np.array([i for i, _ in pairs], np.int64),
                np.stack([v for _, v in pairs]),
            )
            for server_index, pairs in by_server.items()
        }

    def _live_rows(
        self, step: StepInFlight, passes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Slots and tokens of rows whose sequence still runs; which rows, None for all of them."""
        if step.num_releases == self._running.num_releases:
            return step.row_slots, passes, None
        is_live = self._running.slots.epochs[step.row_slots] == step.row_epochs
        if is_live.all():
            return step.row_slots, passes, None
        rows = np.flatnonzero(is_live)
        return step.row_slots[rows], passes[:, rows], rows

    def _fail_broken(
        self, ends: np.ndarray, row_slots: np.ndarray, token_ids: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """End the sequences that no token could be drawn for; return what is left."""
        is_broken = token_ids < 0
        for slot, token_id in zip(
            row_slots[is_broken].tolist(), token_ids[is_broken].tolist(), strict=True
        ):
            self._finish(self._sequence(slot), "error", None, _REASONS_NOT_TO_DRAW[token_id])
        is_end = np.zeros(token_ids.size, bool)
        is_end[ends] = True
        return (
            np.flatnonzero(is_end[~is_broken]),
            row_slots[~is_broken],
            token_ids[~is_broken],
        )

    def _end(self, slot: int, token_id: int) -> None:
        """End the sequence at `slot` if its newest token does."""
        sequence = self._sequence(slot)
        if token_id in sequence.request.stop_token_ids:
            self._finish(sequence, "stop", token_id, None)
        elif self._running.slots.num_known[slot] == sequence.max_num_tokens:
            self._finish(sequence, "length", None, None)

    def _sequence(self, slot: int) -> Sequence:
        sequence = self._running.slots.sequences[slot]
        assert sequence is not None, f"slot {slot} is free"
        return sequence

    def _take_embeddings(self, step: StepInFlight, output: StepOutput) -> None:
        """End the sequences that wait for a vector."""
        found = () if output.embedded_slots is None else output.embedded_slots.tolist()
        if set(found) != set(step.embedded_epochs) or output.embeddings is None:
            raise ProtocolError(
                f"the worker answered step {step.step_id} with vectors of slots {sorted(found)}, "
                f"but those of {sorted(step.embedded_epochs)} were due"
            )
        for slot, vector in zip(found, output.embeddings, strict=True):
            if step.embedded_epochs[slot] != self._running.slots.epochs[slot]:
                continue
            sequence = self._sequence(slot)
            if np.isfinite(vector).all():
                self._embeddings.append((sequence.request_id, vector))
                self._finish(sequence, "stop", None, None)
            else:
                self._finish(sequence, "error", None, _REASONS_NOT_TO_DRAW[-1])

    def _take_logprobs(
        self,
        output: StepOutput,
        row_slots: np.ndarray,
        token_ids: np.ndarray,
        rows: np.ndarray | None,
    ) -> None:
        """Route the rows' log-probabilities to the requests that asked for them."""
        num_logprobs = self._running.slots.num_logprobs[row_slots]
        request_ids = self._running.slots.request_ids
        assert output.logprobs is not None
        for index in np.flatnonzero((num_logprobs >= 0) & (token_ids >= 0)).tolist():
            row = index if rows is None else int(rows[index])
            k = int(num_logprobs[index])
            top_ids, top_logprobs = _top(output.top_ids, output.top_logprobs, row, k)
            self._logprobs.append(
                RequestLogprobs(
                    request_id=int(request_ids[row_slots[index]]),
                    is_prompt=False,
                    logprobs=output.logprobs[row : row + 1],
                    top_ids=top_ids,
                    top_logprobs=top_logprobs,
                )
            )

    def _take_prompt_logprobs(self, step: StepInFlight, scores: PromptLogprobs) -> None:
        """Pass on the scores of prompt positions that were not sent before a preemption."""
        slots = self._running.slots
        if step.scored_epochs.get(scores.slot) != slots.epochs[scores.slot]:
            return
        sequence = self._sequence(scores.slot)
        first = sequence.num_scored_tokens - (scores.start + 1)
        end = min(scores.logprobs.size, sequence.num_prompt_tokens - (scores.start + 1))
        assert first >= 0, f"prompt scores of {sequence.request_id} skip {-first} positions"
        if first >= end:
            return
        sequence.num_scored_tokens += end - first
        k = max(0, sequence.request.sampling.num_prompt_logprobs)
        self._logprobs.append(
            RequestLogprobs(
                request_id=sequence.request_id,
                is_prompt=True,
                logprobs=scores.logprobs[first:end],
                top_ids=scores.top_ids[first:end, :k],
                top_logprobs=scores.top_logprobs[first:end, :k],
            )
        )


def _top(
    top_ids: np.ndarray | None, top_logprobs: np.ndarray | None, row: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k most likely tokens of one row, as [1, k]; nothing where the step has none."""
    if top_ids is None or top_logprobs is None:
        return np.empty((1, 0), np.int32), np.empty((1, 0), np.float32)
    return top_ids[row : row + 1, :k], top_logprobs[row : row + 1, :k]


def _passes(step: StepInFlight, output: StepOutput) -> np.ndarray:
    """int32[R, S]: the tokens of each pass. Raises ProtocolError if they answer no such step."""
    token_ids = output.token_ids
    passes = token_ids if token_ids.ndim == 2 else token_ids.reshape(1, -1)
    num_passes, num_rows = passes.shape
    is_due = output.step_id == step.step_id and num_rows == step.row_slots.size
    if is_due and 1 <= num_passes <= step.max_passes:
        return passes
    raise ProtocolError(
        f"the worker answered step {output.step_id} with {num_passes} x {num_rows} tokens, but "
        f"step {step.step_id} with {step.row_slots.size} rows and at most {step.max_passes} passes "
        "was due"
    )
