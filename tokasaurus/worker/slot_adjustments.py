"""What the sequences at some slots do to their logits, and the token history that it needs."""

import numpy as np
import torch

from tokasaurus.ipc.messages.to_manager import TokenSampling
from tokasaurus.ipc.messages.to_worker import AddedSlot, StepInput
from tokasaurus.model.device_copy import to_device
from tokasaurus.model.sampling.adjustments import AdjustedRows, Adjustment, pack_tokens
from tokasaurus.model.sampling.token_history import TokenHistory

_FIRST_CAPACITY = 64


class SlotAdjustments:
    """Holds an entry for each slot that asks for anything; the others cost one lookup a step."""

    def __init__(self, device: torch.device, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._history = TokenHistory(device, vocab_size)
        self._adjustments: dict[int, Adjustment] = {}
        self._is_adjusted = np.zeros(_FIRST_CAPACITY, bool)

    def apply(self, step: StepInput) -> None:
        """Free and add, in this order."""
        if self._adjustments:
            for slot in step.freed_slots.tolist():
                self._remove(slot)
        for added in step.added_slots:
            self._remove(added.slot)
            adjustment = self._adjustment(added)
            if adjustment is not None:
                self._add(added.slot, adjustment)

    def of_rows(self, slots_S: np.ndarray) -> AdjustedRows | None:
        """Those of a step's rows that ask for something; None if none does."""
        if not self._adjustments:
            return None
        inside = np.minimum(slots_S, len(self._is_adjusted) - 1)
        rows = np.flatnonzero(self._is_adjusted[inside] & (inside == slots_S))
        if not len(rows):
            return None
        return AdjustedRows(
            rows=rows,
            adjustments=[self._adjustments[slot] for slot in slots_S[rows].tolist()],
            history=self._history,
        )

    def record(self, adjusted: AdjustedRows, token_ids_S: torch.Tensor) -> None:
        """The step's rows have drawn these tokens."""
        seats = np.array([a.seat for a in adjusted.adjustments], np.int64)
        seated = np.flatnonzero(seats >= 0)
        if len(seated):
            rows = to_device(adjusted.rows[seated], token_ids_S.device)
            self._history.record(seats[seated], token_ids_S[rows])

    def _add(self, slot: int, adjustment: Adjustment) -> None:
        missing = slot + 1 - len(self._is_adjusted)
        if missing > 0:
            extra = np.zeros(max(missing, len(self._is_adjusted)), bool)
            self._is_adjusted = np.concatenate([self._is_adjusted, extra])
        self._is_adjusted[slot] = True
        self._adjustments[slot] = adjustment

    def _remove(self, slot: int) -> None:
        adjustment = self._adjustments.pop(slot, None)
        if adjustment is not None:
            self._is_adjusted[slot] = False
            if adjustment.seat >= 0:
                self._history.remove(adjustment.seat)

    def _adjustment(self, added: AddedSlot) -> Adjustment | None:
        sampling = added.sampling
        is_plain = not (
            sampling.depends_on_tokens
            or sampling.bias_ids
            or sampling.allowed_token_ids
            or sampling.bad_words
        )
        if is_plain:
            return None
        bias_ids = np.array(sampling.bias_ids, np.int64)
        is_inside = (bias_ids >= 0) & (bias_ids < self._vocab_size)
        words = [word for word in sampling.bad_words if self._all_inside(word)]
        return Adjustment(
            frequency_penalty=sampling.frequency_penalty,
            presence_penalty=sampling.presence_penalty,
            repetition_penalty=sampling.repetition_penalty,
            bias_ids=bias_ids[is_inside],
            bias_values=np.array(sampling.bias_values, np.float32)[is_inside],
            banned_ids=np.array([word[0] for word in words if len(word) == 1], np.int64),
            banned_words=tuple(word for word in words if len(word) > 1),
            allowed=self._allowed(sampling),
            seat=self._seat(added) if sampling.counts_tokens else -1,
        )

    def _all_inside(self, token_ids: tuple[int, ...]) -> bool:
        return bool(token_ids) and all(0 <= i < self._vocab_size for i in token_ids)

    def _allowed(self, sampling: TokenSampling) -> np.ndarray | None:
        if not sampling.allowed_token_ids:
            return None
        ids = np.array(sampling.allowed_token_ids, np.int64)
        return pack_tokens(ids[(ids >= 0) & (ids < self._vocab_size)], self._vocab_size)

    def _seat(self, added: AddedSlot) -> int:
        known = np.empty(0, np.int32) if added.token_ids is None else added.token_ids
        known = known.clip(0, self._vocab_size - 1)
        prompt, output = np.split(known, [added.num_prompt_tokens])
        sees_prompt = added.sampling.repetition_penalty != 1
        longest = max(map(len, added.sampling.bad_words), default=1)
        return self._history.add(prompt if sees_prompt else prompt[:0], output, longest - 1)
