"""One token per row of logits, as each row's sampling parameters say.

Order of what is done to a row's distribution: adjustments (penalties, bias, bans), bans until
min_tokens, temperature, top-k, top-p (on what top-k left, renormalised), min-p (relative to the
most likely token), draw.

Shapes: S rows, V vocabulary, K top log-probabilities asked for by at least one row.
"""

from dataclasses import dataclass

import numpy as np
import torch

from tokasaurus.model.device_copy import to_device
from tokasaurus.model.sampling.adjustments import AdjustedRows
from tokasaurus.model.sampling.draw import DrawnRows
from tokasaurus.model.sampling.logprobs import MIN_LOGPROB, finite_logprobs, top_logprobs
from tokasaurus.model.sampling.noise import noise_keys
from tokasaurus.model.sampling.operations import TORCH_OPERATIONS, SamplingOperations
from tokasaurus.model.sampling.thresholds import TruncatedRows
from tokasaurus.model.sampling.vocabulary_blocks import runs_of

MAX_TEMPERATURE = 1e6


@dataclass(slots=True, kw_only=True)
class SamplingBatch:
    """Sampling parameters of the rows, on the host; meanings as in `TokenSampling`."""

    temperature: np.ndarray
    """float32[S]; 0 is greedy"""
    top_k: np.ndarray
    """int32[S]; 0 keeps all, 1 is greedy"""
    top_p: np.ndarray
    """float32[S]"""
    min_p: np.ndarray
    """float32[S]"""
    seeds: np.ndarray
    """int64[S]"""
    positions: np.ndarray
    """int64[S]: index of the token to draw in its whole sequence"""
    num_top_logprobs: np.ndarray
    """int32[S]; -1: none"""
    banned_rows: np.ndarray
    """int64: the row of each banned token"""
    banned_ids: np.ndarray
    """int64: tokens that can't be drawn"""
    adjusted: AdjustedRows | None = None
    """Rows with penalties and the like; None if there are none."""

    def lift_bans(self, rows: np.ndarray) -> None:
        """Let these rows draw their banned tokens after all."""
        if len(rows) and len(self.banned_rows):
            stays = ~np.isin(self.banned_rows, rows)
            self.banned_rows, self.banned_ids = self.banned_rows[stays], self.banned_ids[stays]

    @property
    def is_random(self) -> np.ndarray:
        """bool[S]: not greedy."""
        return (self.temperature > 0) & (self.top_k != 1)

    def rows(self, which: slice) -> "SamplingBatch":
        """The same for a range of the rows."""
        start, stop, _ = which.indices(len(self.temperature))
        banned = (self.banned_rows >= start) & (self.banned_rows < stop)
        return SamplingBatch(
            temperature=self.temperature[which],
            top_k=self.top_k[which],
            top_p=self.top_p[which],
            min_p=self.min_p[which],
            seeds=self.seeds[which],
            positions=self.positions[which],
            num_top_logprobs=self.num_top_logprobs[which],
            banned_rows=self.banned_rows[banned] - start,
            banned_ids=self.banned_ids[banned],
            adjusted=None if self.adjusted is None else self.adjusted.between(start, stop),
        )

    def take(self, rows: np.ndarray) -> "SamplingBatch":
        """The same for some rows, given in ascending order."""
        places = np.full(len(self.temperature), -1, np.int64)
        places[rows] = np.arange(len(rows))
        banned = places[self.banned_rows] >= 0
        return SamplingBatch(
            temperature=self.temperature[rows],
            top_k=self.top_k[rows],
            top_p=self.top_p[rows],
            min_p=self.min_p[rows],
            seeds=self.seeds[rows],
            positions=self.positions[rows],
            num_top_logprobs=self.num_top_logprobs[rows],
            banned_rows=places[self.banned_rows[banned]],
            banned_ids=self.banned_ids[banned],
            adjusted=None if self.adjusted is None else self.adjusted.take(places),
        )


@dataclass(slots=True, kw_only=True)
class SampledTokens:
    """What was drawn, on the device of the logits."""

    token_ids: torch.Tensor
    """int64[S]; -1 where no logit of the row is finite or one is NaN or +inf; -2 where what was
    asked for leaves no token"""
    logprobs: torch.Tensor | None = None
    """float32[S] (MIN_LOGPROB where not asked for); None when no row asks"""
    top_ids: torch.Tensor | None = None
    """int64[S, K], most likely first; None when no row asks for more than its own"""
    top_logprobs: torch.Tensor | None = None
    """float32[S, K]"""

    @classmethod
    def join(cls, parts: list["SampledTokens"]) -> "SampledTokens":
        """Rows of several calls, one after the other."""
        if len(parts) == 1:
            return parts[0]
        token_ids = torch.cat([part.token_ids for part in parts])
        if all(part.logprobs is None for part in parts):
            return cls(token_ids=token_ids)
        logprobs = torch.full(token_ids.shape, MIN_LOGPROB, device=token_ids.device)
        count = max(0 if part.top_ids is None else part.top_ids.shape[1] for part in parts)
        top_ids = token_ids.new_zeros(len(token_ids), count)
        top = logprobs.new_full((len(token_ids), count), MIN_LOGPROB)
        end = 0
        for part in parts:
            start, end = end, end + len(part.token_ids)
            if part.logprobs is not None:
                logprobs[start:end] = part.logprobs
            if part.top_ids is not None and part.top_logprobs is not None:
                top_ids[start:end, : part.top_ids.shape[1]] = part.top_ids
                top[start:end, : part.top_ids.shape[1]] = part.top_logprobs
        if count == 0:
            return cls(token_ids=token_ids, logprobs=logprobs)
        return cls(token_ids=token_ids, logprobs=logprobs, top_ids=top_ids, top_logprobs=top)

    def take(self, rows: torch.Tensor) -> "SampledTokens":
        """Some of the rows, in any order."""
        return SampledTokens(
            token_ids=self.token_ids[rows],
            logprobs=None if self.logprobs is None else self.logprobs[rows],
            top_ids=None if self.top_ids is None else self.top_ids[rows],
            top_logprobs=None if self.top_logprobs is None else self.top_logprobs[rows],
        )


@torch.inference_mode()
def sample(
    logits_SV: torch.Tensor,
    batch: SamplingBatch,
    operations: SamplingOperations = TORCH_OPERATIONS,
) -> SampledTokens:
    """Draw one token per row. The logits (float32, contiguous) are changed where rows ask for it.

    A draw depends on its own row only: not on the other rows, their number or their order.
    """
    maxima_SB = operations.block_maxima(logits_SV)
    scored = _RawScores.of(logits_SV, maxima_SB, batch, operations)
    if batch.adjusted is not None:
        batch.adjusted.apply(logits_SV)
        _refresh(maxima_SB, logits_SV, batch.adjusted.rows, operations)
    if len(batch.banned_ids):
        _ban(logits_SV, batch)
        _refresh(maxima_SB, logits_SV, np.unique(batch.banned_rows), operations)
    tokens_S = operations.best_tokens(logits_SV, maxima_SB)
    random = np.flatnonzero(batch.is_random)
    if len(random):
        rows = to_device(random, logits_SV.device)
        tokens_S[rows] = _draw_random(logits_SV, maxima_SB, batch, random, operations)
    if scored is not None:
        scored.score(logits_SV, tokens_S)
    operations.mark_broken_rows(logits_SV, maxima_SB, tokens_S)
    if batch.adjusted is not None:
        rows = to_device(batch.adjusted.rows, logits_SV.device)
        is_empty = (maxima_SB[rows] == -torch.inf).all(1)
        tokens_S[rows] = torch.where(is_empty, -2, tokens_S[rows])
    if scored is None:
        return SampledTokens(token_ids=tokens_S)
    return SampledTokens(
        token_ids=tokens_S,
        logprobs=scored.logprobs,
        top_ids=scored.top_ids,
        top_logprobs=scored.top_logprobs,
    )


@dataclass(slots=True)
class _RawScores:
    """Log-probabilities of the rows that ask, from the logits before anything is changed."""

    rows: torch.Tensor
    normalizers: torch.Tensor
    adjusted: torch.Tensor
    """int64[A]: which of `rows` are about to be adjusted."""
    rescored_AC: torch.Tensor
    """int64[A, C]: their tokens whose logits may change"""
    raw_AC: torch.Tensor
    """float32[A, C]: those logits"""
    logprobs: torch.Tensor
    top_ids: torch.Tensor | None
    top_logprobs: torch.Tensor | None

    @classmethod
    def of(
        cls,
        logits_SV: torch.Tensor,
        maxima_SB: torch.Tensor,
        batch: SamplingBatch,
        operations: SamplingOperations,
    ) -> "_RawScores | None":
        asking = np.flatnonzero(batch.num_top_logprobs >= 0)
        if not len(asking):
            return None
        S, V = logits_SV.shape
        rows = to_device(asking, logits_SV.device)
        normalizers = operations.log_normalizers(logits_SV, maxima_SB, rows)
        top_ids = top = None
        count = min(int(batch.num_top_logprobs.max()), V)
        if count:
            ids, values = top_logprobs(logits_SV, maxima_SB, rows, normalizers, count)
            top_ids = ids.new_zeros(S, count)
            top = values.new_full((S, count), MIN_LOGPROB)
            top_ids[rows], top[rows] = ids, values
        adjusted = rescored = rows.new_empty(0)
        raw = normalizers.new_empty(0)
        if batch.adjusted is not None:
            which = np.isin(asking, batch.adjusted.rows)
            adjusted = to_device(np.flatnonzero(which), rows.device)
            places = np.searchsorted(batch.adjusted.rows, asking[which])
            rescored = batch.adjusted.rescored_ids(places, rows.device)
            raw = torch.take(logits_SV, rescored + rows[adjusted].unsqueeze(1) * V)
        return cls(
            rows=rows,
            normalizers=normalizers,
            adjusted=adjusted,
            rescored_AC=rescored,
            raw_AC=raw,
            logprobs=logits_SV.new_full((S,), MIN_LOGPROB),
            top_ids=top_ids,
            top_logprobs=top,
        )

    def score(self, logits_SV: torch.Tensor, tokens_S: torch.Tensor) -> None:
        tokens = tokens_S[self.rows]
        drawn = logits_SV[self.rows, tokens]
        if self.rescored_AC.numel():
            is_drawn = self.rescored_AC == tokens[self.adjusted].unsqueeze(1)
            raw = self.raw_AC.gather(1, is_drawn.long().argmax(1, keepdim=True)).squeeze(1)
            drawn[self.adjusted] = torch.where(is_drawn.any(1), raw, drawn[self.adjusted])
        self.logprobs[self.rows] = finite_logprobs(drawn - self.normalizers)


def _refresh(
    maxima_SB: torch.Tensor,
    logits_SV: torch.Tensor,
    changed_rows: np.ndarray,
    operations: SamplingOperations,
) -> None:
    """Rows (ascending) of the logits have changed since their maxima were taken."""
    for rows in runs_of(changed_rows):
        maxima_SB[rows] = operations.block_maxima(logits_SV[rows])


def _ban(logits_SV: torch.Tensor, batch: SamplingBatch) -> None:
    device = logits_SV.device
    rows = to_device(batch.banned_rows, device)
    logits_SV[rows, to_device(batch.banned_ids, device)] = -torch.inf


def drawn_rows(batch: SamplingBatch, random: np.ndarray, peak_S: torch.Tensor) -> DrawnRows:
    """What a draw needs for the rows whose indices are in `random`; filters but min-p are off."""
    device = peak_S.device
    temperature = np.minimum(batch.temperature[random], MAX_TEMPERATURE).astype(np.float32)
    with np.errstate(divide="ignore"):
        # In float64, so that other implementations' logarithms round to the same float32.
        min_scaled = np.log(batch.min_p[random], dtype=np.float64).astype(np.float32)
    rows = to_device(random, device)
    return DrawnRows(
        rows=rows,
        keys=to_device(noise_keys(batch.seeds[random], batch.positions[random]), device),
        temperature=to_device(temperature, device),
        peak=peak_S[rows],
        threshold=to_device(min_scaled, device),
    )


def _draw_random(
    logits_SV: torch.Tensor,
    maxima_SB: torch.Tensor,
    batch: SamplingBatch,
    random: np.ndarray,
    operations: SamplingOperations,
) -> torch.Tensor:
    """int64[R]: draws for the rows whose indices are in `random`."""
    device = logits_SV.device
    drawn = drawn_rows(batch, random, maxima_SB.amax(1))
    vocab_size = logits_SV.shape[1]
    top_k = batch.top_k[random].astype(np.int64)
    top_k[(top_k <= 0) | (top_k > vocab_size)] = vocab_size
    top_p = batch.top_p[random]
    which = np.flatnonzero((top_k < vocab_size) | (top_p < 1))
    if len(which):
        top_k, top_p = top_k[which], top_p[which]
        index = to_device(which, device)
        truncated = TruncatedRows(
            rows=drawn.rows[index],
            temperature=drawn.temperature[index],
            top_k=to_device(top_k, device),
            top_p=to_device(top_p, device),
            max_top_k=int(top_k[top_k < vocab_size].max(initial=0)),
            any_top_p=bool((top_p < 1).any()),
            any_top_p_alone=bool(((top_p < 1) & (top_k == vocab_size)).any()),
        )
        smallest = operations.truncation_thresholds(logits_SV, maxima_SB, truncated)
        scaled = (smallest - drawn.peak[index]) / truncated.temperature
        drawn.threshold[index] = torch.maximum(drawn.threshold[index], scaled)
    return operations.draw_tokens(logits_SV, maxima_SB, drawn)[0]
