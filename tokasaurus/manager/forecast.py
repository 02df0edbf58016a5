"""What the running sequences will hold, and whether more of them fit: built once, then extended.

Adding candidates to a forecast gives the same as building it anew with them in their seats.
"""

from collections.abc import Callable
from itertools import groupby

import numpy as np

from tokasaurus.manager.block_owners import BlockOwners
from tokasaurus.manager.block_usage import (
    Loads,
    extended_usage,
    prefill_finish_times,
    usage_at_ends,
)
from tokasaurus.manager.ragged import ragged_places
from tokasaurus.manager.running_set import PrefixMatch, RunningSet
from tokasaurus.manager.sequence import Sequence

PredictRemaining = Callable[
    [np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray
]
"""(kinds, outputs so far, max_tokens, quantiles, prompt keys) of N sequences -> outputs to come,
int64[N]."""


class Forecast:
    """Loads of the seated sequences, and of the candidates accepted since."""

    def __init__(
        self,
        running: RunningSet,
        owners: BlockOwners,
        predict: PredictRemaining,
        prefill_rate: int,
        end_lag: int,
    ) -> None:
        """`owners` are this forecast's until another one takes them. `prefill_rate`: tokens
        prefilled per step. `end_lag`: steps from a sequence's last token until its blocks come
        back."""
        self._running = running
        self._owners = owners
        self._predict = predict
        self._prefill_rate = prefill_rate
        self._end_lag = end_lag
        self._num_backlog_tokens = 0
        """Tokens that all prefills so far have to compute."""
        self.loads = self._seated_loads()
        self._usage = usage_at_ends(self.loads, running.page_size)
        """Blocks in use when each of `loads` ends."""

    @property
    def peak(self) -> int:
        """The most blocks that are ever in use."""
        return int(self._usage.max(initial=0))

    def accepts(self, matches: list[PrefixMatch], max_blocks: int) -> bool:
        """Add these candidates if the blocks in use never exceed `max_blocks` with them."""
        joined = self.loads.joined(self._candidate_loads(matches))
        changes = self._take_over_all([match.path for match in matches], joined)
        usage = extended_usage(self._usage, self.loads, joined, self._running.page_size)
        if usage.max() <= max_blocks:
            self.loads, self._usage = joined, usage
            self._num_backlog_tokens += sum(map(self._num_uncached_tokens, matches))
            return True
        for path, owners in reversed(changes):
            self._owners.give(path, owners)
        return False

    def settle(self, sequences: list[Sequence]) -> bool:
        """These accepted candidates, in order and the last ones added, have their seats now.

        False if one found more in the tree than it was accepted with, because others of them have
        inserted it: then this forecast is over.
        """
        loads, slots = self.loads, self._running.slots
        first = loads.size - len(sequences)
        assert first >= 0, f"{len(sequences)} have seats, {loads.size} are foreseen"
        seats = np.array([sequence.slot for sequence in sequences], np.intp)
        num_matched = np.array([sequence.num_matched_blocks for sequence in sequences], np.int64)
        if (num_matched != loads.num_tree_blocks[first:]).any():
            return False
        num_fresh = slots.num_tree_blocks[seats] - num_matched
        places = ragged_places(seats * slots.block_table.shape[1] + num_matched, num_fresh)
        rows = np.repeat(np.arange(first, loads.size), num_fresh)
        self._owners.give(slots.block_table.reshape(-1)[places], rows)
        loads.num_tree_blocks[first:] += num_fresh
        loads.num_owned_blocks[first:] += num_fresh
        return True

    def _seated_loads(self) -> Loads:
        slots = self._running.slots
        seated = np.flatnonzero(slots.is_seated)
        # A lease that ended early leaves blocks for tokens to come: they count as begun.
        least = slots.capacity[seated] - self._running.page_size + 1
        num_scheduled = slots.num_scheduled[seated]
        num_tokens = np.maximum(num_scheduled, least).astype(np.int64)
        num_in_flight = (slots.num_drawn[seated] - slots.num_known[seated]).astype(np.int64)
        # Whoever is let in now ends the leases: what they hold beyond single steps is still to run.
        num_lent = np.maximum(num_in_flight - self._end_lag, 0)
        starts = num_lent + (num_tokens - num_scheduled)
        row_of = np.zeros(slots.num_slots, np.intp)
        row_of[seated] = np.arange(seated.size)
        ends = num_lent + self._end_lag + self._num_steps_to_come(seated, num_in_flight)
        is_waiting = ~slots.is_decoding[seated]
        prefilling = np.fromiter(self._running.prefilling, np.intp)
        if prefilling.size:
            rows = row_of[prefilling]
            num_initial = slots.num_known[prefilling].astype(np.int64)
            matched = np.array(
                [self._running.num_computed(s) for s in self._running.prefilling.values()], np.int64
            )
            num_left = num_initial - matched
            num_tokens[rows] = num_initial
            starts[rows] = prefill_finish_times(num_left, self._prefill_rate)
            ends[rows] += starts[rows] - 1  # the last chunk of a prefill draws a token
            is_waiting[rows] = False
            self._num_backlog_tokens = int(num_left.sum())
        ends[is_waiting] = num_in_flight[is_waiting]
        starts = np.minimum(starts, ends)
        num_tree_blocks = slots.num_tree_blocks[seated].astype(np.int64)
        return Loads(
            num_tokens=num_tokens,
            starts=starts,
            ends=ends,
            num_tree_blocks=num_tree_blocks,
            num_owned_blocks=self._owners.assign(slots.block_table, seated, num_tree_blocks, ends),
        )

    def _num_steps_to_come(self, seated: np.ndarray, num_in_flight: np.ndarray) -> np.ndarray:
        """int64[N]: tokens that each of these slots still draws after those in flight.

        Predictions go by the outputs that are known: nobody has seen yet whether one of those in
        flight is the last.
        """
        slots = self._running.slots
        num_known = slots.num_known[seated] - slots.num_prompt_tokens[seated]
        max_outputs = slots.max_num_tokens[seated] - slots.num_prompt_tokens[seated]
        num_steps = self._predict(
            slots.kinds[seated],
            num_known,
            max_outputs,
            slots.quantiles[seated],
            slots.prompt_keys[seated],
        )
        least = np.clip(max_outputs - num_known - num_in_flight, 0, 1)
        return np.maximum(num_steps - num_in_flight, least)

    def _candidate_loads(self, matches: list[PrefixMatch]) -> Loads:
        sequences = [match.sequence for match in matches]
        num_tokens = np.array([sequence.token_ids.size for sequence in sequences], np.int64)
        num_prompt = np.array([sequence.num_prompt_tokens for sequence in sequences], np.int64)
        num_left = np.array([self._num_uncached_tokens(match) for match in matches], np.int64)
        num_left[0] += self._num_backlog_tokens
        starts = prefill_finish_times(num_left, self._prefill_rate)
        num_steps = self._predict(
            np.array([sequence.kind for sequence in sequences], np.int64),
            num_tokens - num_prompt,
            np.array([sequence.request.max_tokens for sequence in sequences], np.int64),
            np.array([sequence.quantile for sequence in sequences]),
            np.array([sequence.prompt_key for sequence in sequences], np.int64),
        )
        return Loads(
            num_tokens=num_tokens,
            starts=starts,
            ends=starts + num_steps - 1 + self._end_lag,
            num_tree_blocks=np.array([match.path.size for match in matches], np.int64),
            num_owned_blocks=np.zeros(len(matches), np.int64),
        )

    def _num_uncached_tokens(self, match: PrefixMatch) -> int:
        return match.sequence.token_ids.size - match.path.size * self._running.page_size

    def _take_over_all(
        self, paths: list[np.ndarray], loads: Loads
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Let the candidates, the last of `loads`, own what they hold longest of their paths.

        Returns (path, old owners) of what may have changed, in order.
        """
        changes = []
        row = loads.size - len(paths)
        for _, twins in groupby(paths, key=id):
            same = list(twins)
            if same[0].size:
                last = row + int(loads.ends[row : row + len(same)].argmax())
                changes.append((same[0], self._take_over(same[0], last, loads)))
            row += len(same)
        return changes

    def _take_over(self, path: np.ndarray, row: int, loads: Loads) -> np.ndarray:
        """Let `row` own the blocks of `path` that it holds longest; returns the old owners."""
        owners = self._owners.rows(path)
        is_held = owners >= 0
        is_mine = ~is_held | (loads.ends[owners] < loads.ends[row])
        np.subtract.at(loads.num_owned_blocks, owners[is_mine & is_held], 1)
        loads.num_owned_blocks[row] += int(np.count_nonzero(is_mine))
        self._owners.give(path[is_mine], row)
        return owners
