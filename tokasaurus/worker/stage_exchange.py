"""What the stages of a pipeline send each other: hidden states forward, drawn tokens back.

Each rank talks to the ranks of the other stages that hold the same tensor-parallel share. Sends
return at once; what they read is kept until it has been taken. Tokens come back on a group of their
own, so that they wait for no hidden states.

Shapes: T tokens of a micro-batch, D hidden size, S tokens drawn.
"""

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tokasaurus.model.parallel import peer_lost

_MAX_SENDS_IN_FLIGHT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLinks:
    """The process groups of one tensor-parallel rank's stages; rank i of both is stage i."""

    stage: int
    num_stages: int
    hidden: Any
    tokens: Any
    members: tuple[int, ...]
    """The stages' ranks in the replica."""


@dataclass(slots=True)
class _Expected:
    """Tokens of one micro-batch that are on their way to the first stage."""

    work: Any
    slots: np.ndarray
    token_ids: torch.Tensor


class StageExchange:
    """One rank's end of the pipeline. Micro-batches go through all stages in the same order."""

    def __init__(
        self, links: StageLinks, hidden_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._links = links
        self._hidden_size, self._dtype, self._device = hidden_size, dtype, device
        self._sends: deque[tuple[Any, torch.Tensor]] = deque()
        self._expected: deque[_Expected] = deque()
        self._num_received = self._num_expected = 0
        self._awaited = np.zeros(0, np.int64)
        """By slot: how many micro-batches' tokens have to be here before its last one is."""
        self._wait_seconds = 0.0

    def take_wait_seconds(self) -> float:
        """How long the host has waited for other stages since the last call."""
        seconds, self._wait_seconds = self._wait_seconds, 0.0
        return seconds

    def receive_hidden(self, num_tokens: int) -> torch.Tensor:
        """TD from the stage before."""
        shape = (num_tokens, self._hidden_size)
        hidden_TD = torch.empty(shape, dtype=self._dtype, device=self._device)
        self._wait(self._links.hidden.recv([hidden_TD], self._links.stage - 1, 0))
        return hidden_TD

    def send_hidden(self, hidden_TD: torch.Tensor) -> None:
        """TD to the next stage; it must not be written to afterwards."""
        self._send(self._links.hidden, hidden_TD, self._links.stage + 1)

    def send_tokens(self, token_ids_S: torch.Tensor) -> None:
        """From the last stage to the first, which expects so many."""
        self._send(self._links.tokens, token_ids_S, 0)

    def expect_tokens(self, slots_S: np.ndarray) -> None:
        """On the first stage, once a micro-batch is on its way: its tokens will come for these."""
        token_ids_S = torch.empty(len(slots_S), dtype=torch.int64, device=self._device)
        work = self._links.tokens.recv([token_ids_S], self._links.num_stages - 1, 0)
        self._expected.append(_Expected(work, slots_S, token_ids_S))
        self._num_expected += 1
        missing = int(slots_S.max(initial=-1)) + 1 - len(self._awaited)
        if missing > 0:
            extra = np.zeros(max(missing, len(self._awaited)), np.int64)
            self._awaited = np.concatenate([self._awaited, extra])
        self._awaited[slots_S] = self._num_expected

    def receive_tokens(self, slots: np.ndarray) -> list[tuple[np.ndarray, torch.Tensor]]:
        """Wait until the last tokens of these slots are here. Returns all that came since the last
        call: slots and their tokens, in the order in which they were drawn."""
        known = slots[slots < len(self._awaited)]
        needed = int(self._awaited[known].max(initial=0))
        needed = max(needed, self._num_expected - _MAX_SENDS_IN_FLIGHT // 2)
        arrived = []
        while self._num_received < needed:
            oldest = self._expected.popleft()
            self._wait(oldest.work)
            self._num_received += 1
            arrived.append((oldest.slots, oldest.token_ids))
        return arrived

    def finish(self) -> None:
        """Wait until all that was sent has been taken, and all that is expected has come."""
        while self._sends:
            self._wait(self._sends.popleft()[0])
        while self._expected:
            self._wait(self._expected.popleft().work)
            self._num_received += 1
        self._wait_seconds = 0.0

    def _send(self, group: Any, tensor: torch.Tensor, stage: int) -> None:
        if not tensor.numel():
            return
        tensor = tensor.contiguous()
        self._sends.append((group.send([tensor], stage, 0), tensor))
        while len(self._sends) > _MAX_SENDS_IN_FLIGHT:
            self._wait(self._sends.popleft()[0])

    def _wait(self, work: Any) -> None:
        began = time.perf_counter()
        try:
            work.wait()
        except RuntimeError as error:
            raise peer_lost(error, self._links.members) from error
        self._wait_seconds += time.perf_counter() - began
