"""Which manager takes a prompt: the one with the least outstanding work."""

import numpy as np

from tokasaurus.ipc.messages.to_manager import GenerateRequest


class LoadBalancer:
    """Work is counted in sequences first, since each takes a row of every step, then in tokens.

    `choose` sees the prompt, so that affinity to cached prefixes can come in here.
    """

    def __init__(self, num_managers: int) -> None:
        self._num_sequences = [0] * num_managers
        self._num_tokens = [0] * num_managers

    def choose(self, prompt_ids: np.ndarray) -> int:  # noqa: ARG002
        """The dp_rank for all samples of a prompt, which share its prefix."""
        ranks = range(len(self._num_sequences))
        return min(ranks, key=lambda rank: (self._num_sequences[rank], self._num_tokens[rank]))

    def add(self, dp_rank: int, request: GenerateRequest) -> None:
        """The request was sent there."""
        self._num_sequences[dp_rank] += 1
        self._num_tokens[dp_rank] += len(request.prompt_ids)

    def remove(self, dp_rank: int, request: GenerateRequest) -> None:
        """The request has ended there."""
        self._num_sequences[dp_rank] -= 1
        self._num_tokens[dp_rank] -= len(request.prompt_ids)
        assert self._num_sequences[dp_rank] >= 0, (dp_rank, self._num_sequences)

    def outstanding(self) -> list[int]:
        """Sequences per dp_rank that have not ended."""
        return list(self._num_sequences)
