"""Spreads prefills over time, so that sequences join the batch about as fast as others leave it.

If whole queues are prefilled at once, their sequences also end at once: the batch runs full and
empty in waves. Little's law says how many leave per step once all seats decode: their number over
the mean length of outputs.
"""

from itertools import islice

from tokasaurus.manager.running_set import RunningSet
from tokasaurus.manager.settings import ManagerSettings

_MEMORY = 64
"""Ends that the mean length is taken over, about."""
_SAMPLED_PREFILLS = 16
"""How many at the head of the line tell how many tokens a prefill has left."""


class PrefillPacer:
    """Says how many prompt tokens a step takes."""

    def __init__(self, settings: ManagerSettings) -> None:
        self._settings = settings
        self._mean_outputs = 0.0
        """Of sequences that ended; 0 before any did."""

    @property
    def needs_backlog(self) -> bool:
        """Whether budgets depend on how many tokens a prefill has left."""
        return not self._settings.greedy_prefill and self._mean_outputs > 0

    def observe(self, num_outputs: int) -> None:
        """A running sequence ended after so many outputs."""
        num_outputs = max(1, num_outputs)
        if not self._mean_outputs:
            self._mean_outputs = float(num_outputs)
        self._mean_outputs += (num_outputs - self._mean_outputs) / _MEMORY

    def budget_of(self, running: RunningSet, num_decodes: int) -> int:
        """Most prefill tokens of a step with so many decodes, as things stand."""
        tokens_per_prefill = 0.0
        if self.needs_backlog:
            first = list(islice(running.prefilling.values(), _SAMPLED_PREFILLS))
            num_left = sum(s.token_ids.size - running.num_computed(s) for s in first)
            tokens_per_prefill = num_left / max(1, len(first))
        return self.budget(num_decodes, len(running.prefilling), tokens_per_prefill)

    def budget(self, num_decodes: int, num_prefills: int, tokens_per_prefill: float) -> int:
        """Most prefill tokens of a step; all that fit if nothing decodes or lengths are unknown.

        It is at least one block, so every prefill advances.
        """
        most = self._settings.prefill_budget(num_decodes)
        if not num_decodes or not self.needs_backlog:
            return most
        joins_per_step = (num_decodes + num_prefills) / self._mean_outputs
        paced = int(joins_per_step * tokens_per_prefill) + 1
        return min(most, max(paced, self._settings.page_size))
