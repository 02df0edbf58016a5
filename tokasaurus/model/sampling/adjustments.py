"""What requests do to their logits before the draw: penalties, biases, bans, allowed sets.

Order: repetition, then frequency and presence penalty, bias, bans. Only the rows that ask are read
or written, and each depends on nothing but its request and its own tokens.

Shapes: S rows, V vocabulary, R adjusted rows, A some of them, C ids of each, N banned words,
W tokens of the longest prefix.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from tokasaurus.model.device_copy import to_device
from tokasaurus.model.sampling.token_history import TokenHistory

_NO_IDS = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustment:
    """What one sequence asks for; ids are inside the vocabulary."""

    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    bias_ids: np.ndarray = field(default_factory=lambda: _NO_IDS)
    """int64, each once"""
    bias_values: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    banned_ids: np.ndarray = field(default_factory=lambda: _NO_IDS)
    """int64"""
    banned_words: tuple[tuple[int, ...], ...] = ()
    """Of two tokens or more: the last one is banned after the others."""
    allowed: np.ndarray | None = None
    """uint8[4 * ceil(V / 32)]: bit t, lowest first, is set if token t may be drawn."""
    seat: int = -1
    """Its seat in the token history, if what it asks for needs one."""

    @property
    def is_penalized(self) -> bool:
        return (self.frequency_penalty, self.presence_penalty, self.repetition_penalty) != (0, 0, 1)


@dataclass(slots=True, kw_only=True)
class AdjustedRows:
    """Rows of the logits and what is asked for each."""

    rows: np.ndarray
    """int64[R], ascending"""
    adjustments: list[Adjustment]
    """[R]"""
    history: TokenHistory
    masks: list[np.ndarray | None] | None = None
    """[R]: what each row's grammar allows now, in the form of `Adjustment.allowed`; None where it
    has none. None instead of a list where no row has one."""

    def between(self, start: int, stop: int) -> "AdjustedRows | None":
        """Those of the rows start..stop-1, counted from start; None if there are none."""
        first, end = np.searchsorted(self.rows, [start, stop]).tolist()
        if first == end:
            return None
        return AdjustedRows(
            rows=self.rows[first:end] - start,
            adjustments=self.adjustments[first:end],
            history=self.history,
            masks=None if self.masks is None else self.masks[first:end],
        )

    def take(self, places_S: np.ndarray) -> "AdjustedRows | None":
        """Row r moved to places_S[r], which rises with r; left out where that is below 0."""
        places = places_S[self.rows]
        kept = np.flatnonzero(places >= 0).tolist()
        if not kept:
            return None
        return AdjustedRows(
            rows=places[kept],
            adjustments=[self.adjustments[index] for index in kept],
            history=self.history,
            masks=None if self.masks is None else [self.masks[index] for index in kept],
        )

    def rescored_ids(self, which: np.ndarray, device: torch.device) -> torch.Tensor:
        """int64[A, C]: the ids whose logits in these of the rows may become other finite numbers,
        and some that don't."""
        chosen = [self.adjustments[index] for index in which.tolist()]
        width = max((len(a.bias_ids) for a in chosen), default=0)
        biased = np.zeros((len(chosen), width), np.int64)
        for row, adjustment in enumerate(chosen):
            biased[row, : len(adjustment.bias_ids)] = adjustment.bias_ids
        ids = to_device(biased, device)
        penalized = np.flatnonzero([a.is_penalized for a in chosen])
        if not len(penalized):
            return ids
        seats = np.array([chosen[row].seat for row in penalized.tolist()], np.int64)
        seen = ids.new_zeros(len(chosen), self.history.width(seats))
        held = self.history.ids[to_device(seats, device), : seen.shape[1]]
        seen[to_device(penalized, device)] = held
        return torch.cat([ids, seen], dim=1)

    def apply(self, logits_SV: torch.Tensor) -> None:
        """Change the logits (float32, contiguous) in place."""
        pairs = list(zip(self.rows.tolist(), self.adjustments, strict=True))
        penalized = [(row, a) for row, a in pairs if a.is_penalized]
        if penalized:
            _penalize(logits_SV, penalized, self.history)
        biased = [(row, a) for row, a in pairs if len(a.bias_ids)]
        if biased:
            _add_biases(logits_SV, biased)
        banning = [(row, a) for row, a in pairs if len(a.banned_ids)]
        if banning:
            _ban(logits_SV, banning)
        watching = [(row, a) for row, a in pairs if a.banned_words]
        if watching:
            _ban_words(logits_SV, watching, self.history)
        masked = [(row, a.allowed) for row, a in pairs if a.allowed is not None]
        if masked:
            keep_allowed(logits_SV, masked)
        grammars = zip(self.rows.tolist(), self.masks or [], strict=False)
        by_grammar = [(row, mask) for row, mask in grammars if mask is not None]
        if by_grammar:
            keep_allowed(logits_SV, by_grammar)


_Pairs = list[tuple[int, Adjustment]]


def _penalize(logits_SV: torch.Tensor, pairs: _Pairs, history: TokenHistory) -> None:
    seats = np.array([a.seat for _, a in pairs], np.int64)
    width = history.width(seats)
    if width == 0:
        return
    device = logits_SV.device
    parameters = np.array(
        [(a.frequency_penalty, a.presence_penalty, a.repetition_penalty) for _, a in pairs],
        np.float32,
    )
    frequency, presence, repetition = to_device(parameters, device).T.unsqueeze(2)
    rows = to_device(np.array([row for row, _ in pairs]), device).unsqueeze(1)
    which = to_device(seats, device)
    num_distinct = history.num_distinct[which].unsqueeze(1)
    is_used = torch.arange(width, device=device) < num_distinct
    # Columns beyond a row's distinct tokens repeat its first: the same value is written twice.
    ids = history.ids[which, :width]
    ids = torch.where(is_used, ids, ids[:, :1])
    counts = history.counts[which, :width]
    places = ids + rows * logits_SV.shape[1]
    before = torch.take(logits_SV, places)
    after = torch.where(before > 0, before / repetition, before * repetition)
    after = after - frequency * counts - presence * (counts > 0)
    after = torch.where(is_used, after, after[:, :1])
    after = torch.where(num_distinct > 0, after, before)
    logits_SV.view(-1).scatter_(0, places.flatten(), after.flatten())


def _add_biases(logits_SV: torch.Tensor, pairs: _Pairs) -> None:
    places = _places(logits_SV, pairs, [a.bias_ids for _, a in pairs])
    values = to_device(np.concatenate([a.bias_values for _, a in pairs]), logits_SV.device)
    logits_SV.view(-1).scatter_add_(0, places, values)


def _ban(logits_SV: torch.Tensor, pairs: _Pairs) -> None:
    places = _places(logits_SV, pairs, [a.banned_ids for _, a in pairs])
    logits_SV.view(-1).scatter_(0, places, -torch.inf)


def _ban_words(logits_SV: torch.Tensor, pairs: _Pairs, history: TokenHistory) -> None:
    device, width = logits_SV.device, history.last_tokens.shape[1]
    words = [(row, a.seat, word) for row, a in pairs for word in a.banned_words]
    prefixes = np.full((len(words), width), -1, np.int64)
    for index, (_, _, word) in enumerate(words):
        prefixes[index, width - len(word) + 1 :] = word[:-1]
    prefixes_NW = to_device(prefixes, device)
    seats = to_device(np.array([seat for _, seat, _ in words]), device)
    last_NW = history.last_tokens[seats]
    matches = ((prefixes_NW == -1) | (prefixes_NW == last_NW)).all(1)
    vocab_size = logits_SV.shape[1]
    places = to_device(np.array([row * vocab_size + word[-1] for row, _, word in words]), device)
    bounds = torch.where(matches, -torch.inf, torch.inf)
    logits_SV.view(-1).scatter_reduce_(0, places, bounds, "amin")


def _places(logits_SV: torch.Tensor, pairs: _Pairs, ids: list[np.ndarray]) -> torch.Tensor:
    rows = np.repeat([row for row, _ in pairs], [len(some) for some in ids])
    places = np.concatenate(ids) + rows * logits_SV.shape[1]
    return to_device(places, logits_SV.device)


def keep_allowed(logits_SV: torch.Tensor, masks: list[tuple[int, np.ndarray]]) -> None:
    """Ban what a row's mask (bits as in `Adjustment.allowed`) does not hold."""
    device, vocab_size = logits_SV.device, logits_SV.shape[1]
    if device.type == "cpu":
        for row, mask in masks:
            bits = np.unpackbits(mask, count=vocab_size, bitorder="little").view(bool)
            _keep_in_row(logits_SV[row], bits)
        return
    shifts = torch.arange(8, dtype=torch.uint8, device=device)
    packed = to_device(np.stack([mask for _, mask in masks]), device)
    banned = ((packed.unsqueeze(-1) >> shifts) & 1).flatten(1)[:, :vocab_size] == 0
    rows = to_device(np.array([row for row, _ in masks]), device)
    logits_SV[rows] = logits_SV.index_select(0, rows).masked_fill_(banned, -torch.inf)


def _keep_in_row(logits_V: torch.Tensor, is_allowed: np.ndarray) -> None:
    """Masks of grammars hold few tokens or nearly all: touch whichever are fewer one by one."""
    if 2 * np.count_nonzero(is_allowed) > len(is_allowed):
        logits_V[torch.from_numpy(np.flatnonzero(~is_allowed))] = -torch.inf
        return
    ids = torch.from_numpy(np.flatnonzero(is_allowed))
    kept = logits_V[ids]
    logits_V.fill_(-torch.inf)
    logits_V[ids] = kept


def pack_tokens(token_ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """uint8[4 * ceil(V / 32)]: the bits of these tokens, as in `Adjustment.allowed`."""
    bits = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
    bits[token_ids] = 1
    return np.packbits(bits, bitorder="little")
