"""Admits a sequence when a simulation of all running ones says that blocks never run out.

How long each of them still runs is predicted from those that ended; that one number says when its
blocks come back and how many it takes until then.
"""

import zlib

import numpy as np

from tokasaurus.manager.block_usage import usage_at
from tokasaurus.manager.forecast import Forecast
from tokasaurus.manager.running_set import PrefixMatch, RunningSet
from tokasaurus.manager.sequence import Sequence
from tokasaurus.manager.settings import ManagerSettings
from tokasaurus.manager.stopping_predictor import StoppingPredictor


class SimulateFuture:
    """Foresees usage; asks the simulation only where cheap bounds don't decide."""

    def __init__(self, settings: ManagerSettings, predictor: StoppingPredictor) -> None:
        self._settings = settings
        self._predictor = predictor
        self._forecast: Forecast | None = None
        self._running_outputs: dict[int, np.ndarray] = {}
        """Output lengths so far of the running sequences, by kind."""

    def begin(self) -> None:
        self._forecast = None

    def admits(self, running: RunningSet, matches: list[PrefixMatch]) -> bool:
        blocks = running.blocks
        if sum(match.num_new_blocks for match in matches) > blocks.num_available:
            return False
        if not running.num_running and len(matches) == 1:
            return True  # alone it fits, whatever is predicted
        if self._forecast is None:
            num_free = blocks.num_available - running.num_reserved_blocks
            if sum(match.num_final_blocks for match in matches) <= num_free:
                return True
            self._forecast = self.forecast(running)
        return self._forecast.accepts(matches, blocks.num_blocks)

    def settle(self, sequences: list[Sequence]) -> None:
        if self._forecast is not None:
            self._forecast.settle(sequences)

    def observe(self, sequence: Sequence, num_outputs: int, *, is_stop: bool) -> None:
        prompt = zlib.crc32(sequence.request.prompt_ids.tobytes())
        self._predictor.observe(sequence.kind, prompt, num_outputs, is_stop=is_stop)

    def forecast(self, running: RunningSet) -> Forecast:
        """What the seated sequences will hold."""
        slots = running.slots
        running.refresh_decode_slots()
        decode_slots = running.decode_slots
        num_outputs = slots.num_drawn[decode_slots] - slots.num_prompt_tokens[decode_slots]
        kinds = slots.kinds[decode_slots]
        self._running_outputs = {int(kind): num_outputs[kinds == kind] for kind in np.unique(kinds)}
        return Forecast(
            running,
            self._predict,
            prefill_rate=max(1, self._settings.prefill_budget(decode_slots.size)),
            end_lag=self._settings.scheduling_steps_ahead,
        )

    def _predict(
        self,
        kinds: np.ndarray,
        num_outputs: np.ndarray,
        max_tokens: np.ndarray,
        quantiles: np.ndarray,
    ) -> np.ndarray:
        remaining = np.zeros(kinds.size, np.int64)
        none = np.empty(0, np.int64)
        for kind in np.unique(kinds).tolist():
            of_kind = kinds == kind
            remaining[of_kind] = self._predictor.remaining(
                kind,
                num_outputs[of_kind],
                max_tokens[of_kind],
                quantiles[of_kind],
                self._running_outputs.get(kind, none),
            )
        return remaining

    def check_invariants(self, running: RunningSet) -> None:
        """Foreseen usage now is the allocator's."""
        loads = self.forecast(running).loads
        now = int(usage_at(loads, np.zeros(1, np.int64), running.page_size)[0])
        assert now == running.blocks.num_in_use, f"{now} blocks foreseen"
