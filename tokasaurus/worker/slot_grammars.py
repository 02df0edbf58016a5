"""The grammars of the sequences at some slots, kept up to date by a thread of their own.

After a step has drawn its tokens the thread takes them in and computes the masks of the next draw,
while the main thread launches the next forward pass. What a step draws never passes through the
manager first, so it may run ahead as with any other request.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from tokasaurus.ipc.messages.to_manager import TokenSampling
from tokasaurus.ipc.messages.to_worker import AddedSlot, StepInput
from tokasaurus.worker.grammar_tokens import GrammarState, GrammarTokens


@dataclass(slots=True)
class _Entry:
    """Written by the thread until `ready` is done; then the main thread may read."""

    ready: "Future[None]" = field(default_factory=Future)
    state: GrammarState | None = None


class SlotGrammars:
    """Costs nothing, neither the thread nor the vocabulary, until the first grammar comes."""

    def __init__(self, load_tokens: Callable[[], GrammarTokens]) -> None:
        self._load_tokens = load_tokens
        self._tokens: GrammarTokens | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._entries: dict[int, _Entry] = {}

    def apply(self, step: StepInput) -> None:
        """Free and add, in this order."""
        if self._entries:
            for slot in step.freed_slots.tolist():
                self._entries.pop(slot, None)
        for added in step.added_slots:
            self._entries.pop(added.slot, None)
            if added.sampling.grammar:
                entry = self._entries[added.slot] = _Entry()
                output = _output_ids(added)
                entry.ready = self._submit(partial(self._start, entry, added, output))

    def masks(self, slots: list[int]) -> tuple[list[np.ndarray | None] | None, list[bool]]:
        """What may be drawn at each of the slots (None where there is no grammar), and which of
        them can only end. Waits for the thread."""
        if not self._entries:
            return None, [False] * len(slots)
        entries = [self._entries.get(slot) for slot in slots]
        if not any(entries):
            return None, [False] * len(slots)
        masks: list[np.ndarray | None] = []
        must_end = []
        for entry in entries:
            if entry is not None:
                entry.ready.result()
            state = None if entry is None else entry.state
            masks.append(None if state is None else state.mask)
            must_end.append(state is not None and state.must_end)
        return masks, must_end

    def record(self, slots: list[int], token_ids_S: torch.Tensor, rows: np.ndarray) -> None:
        """These slots have drawn the tokens in the given rows."""
        drawn = [
            (entry, row)
            for slot, row in zip(slots, rows.tolist(), strict=True)
            if (entry := self._entries.get(slot)) is not None
        ]
        if not drawn:
            return
        on_host, copied = token_ids_S, None
        if token_ids_S.device.type == "cuda":
            on_host = token_ids_S.to("cpu", non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        ready = self._submit(partial(_advance, drawn, on_host, copied))
        for entry, _ in drawn:
            entry.ready = ready

    def _submit(self, task: Callable[[], None]) -> "Future[None]":
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")
        return self._thread.submit(task)

    def _start(self, entry: _Entry, added: AddedSlot, output_ids: list[int]) -> None:
        if self._tokens is None:
            self._tokens = self._load_tokens()
        sampling: TokenSampling = added.sampling
        entry.state = GrammarState(self._tokens, sampling.grammar, sampling.end_token_ids)
        entry.state.consume(output_ids)
        entry.state.update()


def _advance(
    drawn: list[tuple[_Entry, int]], token_ids_S: torch.Tensor, copied: torch.cuda.Event | None
) -> None:
    if copied is not None:
        copied.synchronize()
    token_ids = token_ids_S.tolist()
    for entry, row in drawn:
        if entry.state is not None:
            entry.state.consume([token_ids[row]])
            entry.state.update()


def _output_ids(added: AddedSlot) -> list[int]:
    return [] if added.token_ids is None else added.token_ids[added.num_prompt_tokens :].tolist()
