"""Admits a sequence when a simulation of all running ones says that blocks never run out.

How long each of them still runs is predicted from those that ended; that one number says when its
blocks come back and how many it takes until then. What predictions can't know is learned from
preemptions: a part of the blocks is held back, so large that about `_PREEMPTED_SHARE` of the
sequences are preempted.
"""

import numpy as np

from tokasaurus.manager.block_owners import BlockOwners
from tokasaurus.manager.block_usage import usage_at
from tokasaurus.manager.forecast import Forecast
from tokasaurus.manager.prefill_pacing import PrefillPacer
from tokasaurus.manager.running_set import PrefixMatch, RunningSet
from tokasaurus.manager.sequence import Sequence
from tokasaurus.manager.settings import ManagerSettings
from tokasaurus.manager.stopping_predictor import StopCurve, StoppingPredictor

_PREEMPTED_SHARE = 0.005
_MAX_HEADROOM = 0.1
_MAX_HEADROOM_STEP = 0.002
"""For one preemption, as few sequences that hold much say little."""
_NONE = np.empty(0, np.int64)


class SimulateFuture:
    """Foresees usage; asks the simulation only where cheap bounds don't decide."""

    def __init__(
        self,
        settings: ManagerSettings,
        predictor: StoppingPredictor,
        pacer: PrefillPacer | None = None,
    ) -> None:
        """`pacer` says how fast prompts are computed; None: as fast as they fit."""
        self._settings = settings
        self._pacer = pacer or PrefillPacer(settings)
        self._predictor = predictor
        self._forecast: Forecast | None = None
        self._owners: BlockOwners | None = None
        """Of the forecast; kept, as clearing one entry for each block would be dear."""
        self._curves: dict[int, StopCurve | None] = {}
        """By kind, of the last forecast."""
        self.headroom = 0.0
        """Share of the blocks that forecasts leave free."""
        self._num_running = 1
        """At the last forecast."""

    def begin(self) -> None:
        self._forecast = None

    def admits(self, running: RunningSet, matches: list[PrefixMatch]) -> bool:
        blocks = running.blocks
        if sum(match.num_new_blocks for match in matches) > blocks.num_available:
            return False
        if not running.num_running and len(matches) == 1:
            self._forecast = None  # it has refused more of them, and would not know of this one
            return True  # alone it fits, whatever is predicted
        if self._forecast is None:
            num_free = blocks.num_available - running.num_reserved_blocks
            if sum(match.num_final_blocks for match in matches) <= num_free:
                return True
            self._owners = self._owners or BlockOwners(blocks.ref_counts)
            self._forecast = self.forecast(running, self._owners)
        return self._forecast.accepts(matches, int(blocks.num_blocks * (1 - self.headroom)))

    def settle(self, sequences: list[Sequence]) -> None:
        if self._forecast is not None and not self._forecast.settle(sequences):
            self._forecast = None

    def observe(self, sequence: Sequence, num_outputs: int, *, is_stop: bool) -> None:
        key = sequence.prompt_key
        self._predictor.observe(sequence.kind, key, num_outputs, is_stop=is_stop)
        self._correct_headroom(sequence.num_preemptions)

    def forecast(self, running: RunningSet, owners: BlockOwners | None = None) -> Forecast:
        """What the seated sequences will hold; `owners` may be those of a forecast that is over."""
        slots = running.slots
        self._num_running = max(1, running.num_running)
        running.refresh_decode_slots()
        decode_slots = running.decode_slots
        num_outputs = slots.num_known[decode_slots] - slots.num_prompt_tokens[decode_slots]
        kinds = slots.kinds[decode_slots]
        prompts = slots.prompt_keys[decode_slots]
        self._curves = {
            kind: self._predictor.curve(kind, num_outputs[of_kind], prompts[of_kind])
            for kind, of_kind in _by_kind(kinds)
        }
        return Forecast(
            running,
            owners or BlockOwners(running.blocks.ref_counts),
            self._predict,
            prefill_rate=max(1, self._pacer.budget_of(running, decode_slots.size)),
            end_lag=self._settings.scheduling_steps_ahead,
        )

    def _predict(
        self,
        kinds: np.ndarray,
        num_outputs: np.ndarray,
        max_tokens: np.ndarray,
        quantiles: np.ndarray,
        prompt_keys: np.ndarray,
    ) -> np.ndarray:
        remaining = np.maximum(max_tokens - num_outputs, 0).astype(np.int64)
        for kind, of_kind in _by_kind(kinds):
            if kind not in self._curves:
                self._curves[kind] = self._predictor.curve(kind, _NONE, _NONE)
            curve = self._curves[kind]
            if curve is None:
                continue
            remaining[of_kind] = curve.remaining(
                num_outputs[of_kind],
                max_tokens[of_kind],
                quantiles[of_kind],
                prompt_keys[of_kind],
            )
        return remaining

    def _correct_headroom(self, num_preemptions: int) -> None:
        """A sequence ended: half of what it may have held, by the mean, is held back for each time
        that it was preempted; in balance, that is undone by so many ends without."""
        step = min(1 / (2 * self._num_running), _MAX_HEADROOM_STEP)
        change = step * (num_preemptions - _PREEMPTED_SHARE)
        self.headroom = min(max(self.headroom + change, 0.0), _MAX_HEADROOM)

    def check_invariants(self, running: RunningSet) -> None:
        """Foreseen usage now is the allocator's."""
        loads = self.forecast(running).loads
        now = int(usage_at(loads, np.zeros(1, np.int64), running.page_size)[0])
        assert now == running.blocks.num_in_use, f"{now} blocks foreseen"


def _by_kind(kinds: np.ndarray) -> list[tuple[int, np.ndarray | slice]]:
    """(kind, those that are of it) for each kind that there is."""
    if kinds.size and (kinds == kinds[0]).all():
        return [(kinds.item(0), slice(None))]
    return [(kind, kinds == kind) for kind in np.unique(kinds).tolist()]
