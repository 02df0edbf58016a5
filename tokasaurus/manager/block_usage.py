"""Future use of KV blocks, as pure functions of arrays: no step is played through.

Time t counts steps from now. N sequences; each holds the blocks of its prompt until it starts to
decode at `starts`, takes one token per step from then on, and gives everything back after `ends`.
A block of the prefix tree counts once: for the sequence among its holders that ends last.
"""

from dataclasses import dataclass

import numpy as np

_MAX_CELLS = 16_384
"""Sequences by times up to which looking at each costs less than sorting them."""
_ROW = np.s_[None, :]
_COLUMN = np.s_[:, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loads:
    """What N sequences hold and will hold; all int64[N]."""

    num_tokens: np.ndarray
    """Tokens in the KV cache when it starts to decode (or now, if it decodes)."""
    starts: np.ndarray
    """Step after which its tokens grow; 0 if it decodes and has not been lent any."""
    ends: np.ndarray
    """Last step at which it holds its blocks; at least `starts`."""
    num_tree_blocks: np.ndarray
    """Blocks of its table that are nodes of the prefix tree."""
    num_owned_blocks: np.ndarray
    """Those of them that no other holder outlives."""

    @property
    def size(self) -> int:
        return self.ends.size

    def rows(self, chosen: slice) -> "Loads":
        """Some of the sequences."""
        return Loads(
            num_tokens=self.num_tokens[chosen],
            starts=self.starts[chosen],
            ends=self.ends[chosen],
            num_tree_blocks=self.num_tree_blocks[chosen],
            num_owned_blocks=self.num_owned_blocks[chosen],
        )

    def joined(self, other: "Loads") -> "Loads":
        """Both sets of sequences."""
        return Loads(
            num_tokens=np.concatenate([self.num_tokens, other.num_tokens]),
            starts=np.concatenate([self.starts, other.starts]),
            ends=np.concatenate([self.ends, other.ends]),
            num_tree_blocks=np.concatenate([self.num_tree_blocks, other.num_tree_blocks]),
            num_owned_blocks=np.concatenate([self.num_owned_blocks, other.num_owned_blocks]),
        )


def usage_at(loads: Loads, times: np.ndarray, page_size: int) -> np.ndarray:
    """Blocks in use at each of `times`, int64[T], each >= 0; in the cheaper of two ways."""
    if loads.size * times.size <= _MAX_CELLS:
        return usage_by_cells(loads, times, page_size)
    return usage_by_sums(loads, times, page_size)


def usage_by_cells(loads: Loads, times: np.ndarray, page_size: int) -> np.ndarray:
    """`usage_at` by looking at every sequence at every time."""
    # The longer of the two lies along the rows.
    axis = 0 if loads.size < times.size else 1
    by_sequence, by_time = (_COLUMN, _ROW) if axis == 0 else (_ROW, _COLUMN)
    times = times[by_time]
    cells = np.maximum(times - loads.starts[by_sequence], 0)
    cells += (loads.num_tokens + (page_size - 1))[by_sequence]
    cells //= page_size
    cells += (loads.num_owned_blocks - loads.num_tree_blocks)[by_sequence]
    cells *= times <= loads.ends[by_sequence]
    return cells.sum(axis=axis)


def usage_by_sums(loads: Loads, times: np.ndarray, page_size: int) -> np.ndarray:
    """`usage_at` in closed form.

    A sequence that decodes at time t has ceil((num_tokens - start + t) / page_size) blocks. With
    num_tokens - start + page_size - 1 = q * page_size + m, that is q + t // page_size, and one more
    if m + t % page_size reaches page_size; so the sum over sequences needs only the sum of q, their
    number, and how many have an m that is large enough, all of them running sums over the order
    in which sequences start and end.
    """
    by_start, by_end = np.argsort(loads.starts), np.argsort(loads.ends)
    num_started = np.searchsorted(loads.starts[by_start], times, side="right")
    num_ended = np.searchsorted(loads.ends[by_end], times, side="left")
    prompt_blocks = -(-loads.num_tokens // page_size)
    q, m = np.divmod(loads.num_tokens - loads.starts + page_size - 1, page_size)
    fixed = loads.num_owned_blocks - loads.num_tree_blocks
    usage = _sum_after(prompt_blocks[by_start], num_started)
    usage += _sum_after(fixed[by_end], num_ended)
    usage += _sum_before(q[by_start], num_started) - _sum_before(q[by_end], num_ended)
    usage += (num_started - num_ended) * (times // page_size)
    least_m = page_size - times % page_size
    usage += _count_before(m[by_start], num_started, least_m, page_size)
    usage -= _count_before(m[by_end], num_ended, least_m, page_size)
    return usage


def usage_at_ends(loads: Loads, page_size: int) -> np.ndarray:
    """int64[N]: blocks in use when each sequence ends. The most that are ever in use are among
    them, as usage falls only where a sequence ends."""
    order = np.argsort(loads.ends)
    usage = np.empty(loads.size, np.int64)
    usage[order] = usage_at(loads, loads.ends[order], page_size)
    return usage


def extended_usage(usage: np.ndarray, before: Loads, joined: Loads, page_size: int) -> np.ndarray:
    """`usage_at_ends` of `joined`, if it is `usage` for `before`.

    The sequences of `before` come first in `joined`, and differ only in the blocks that they own.
    """
    num_before = before.size
    added = joined.rows(slice(num_before, None))
    seen = usage + usage_at(added, before.ends, page_size)
    lost = before.num_owned_blocks - joined.num_owned_blocks[:num_before]
    losers = np.flatnonzero(lost)
    if losers.size:
        losers = losers[np.argsort(before.ends[losers])]
        num_ended = np.searchsorted(before.ends[losers], before.ends)
        seen -= _sum_after(lost[losers], num_ended)
    return np.concatenate([seen, usage_at(joined, added.ends, page_size)])


def prefill_finish_times(num_tokens: np.ndarray, tokens_per_step: int) -> np.ndarray:
    """Step at which each of these prefills, done one after the other, is through."""
    return -(-np.cumsum(num_tokens) // tokens_per_step)


def _sum_before(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sum of the first `counts` values, for each count."""
    sums = np.zeros(values.size + 1, np.int64)
    np.cumsum(values, out=sums[1:])
    return sums[counts]


def _sum_after(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sum of all but the first `counts` values, for each count."""
    return values.sum() - _sum_before(values, counts)


def _count_before(
    values: np.ndarray, counts: np.ndarray, least: np.ndarray, page_size: int
) -> np.ndarray:
    """How many of the first `counts` values are at least `least`, which is 1 to `page_size`."""
    levels = np.arange(1, page_size + 1)[:, None]
    # At [j - 1, n], those among the first n that are at least j.
    running = np.zeros((page_size, values.size + 1), np.int32)
    np.cumsum(values >= levels, axis=1, dtype=np.int32, out=running[:, 1:])
    return running[least - 1, counts]
