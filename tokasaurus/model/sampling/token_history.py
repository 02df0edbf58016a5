"""Which tokens a sequence has had and how often it drew them, kept on the device.

The worker learns what a step drew only after it has launched the next one, so that the counts that
penalties need are kept where the draw happens. A sequence whose draws depend on its tokens takes a
seat here; its distinct tokens stand in the first `num_distinct` columns of its row.

Shapes: P seats, C columns, R rows of a step, W tokens of the longest prefix that is looked for.
"""

from collections import Counter

import numpy as np
import torch

from tokasaurus.model.device_copy import to_device

_FIRST_SEATS = 8
_FIRST_COLUMNS = 64


class TokenHistory:
    """Rows and columns double as they are needed."""

    def __init__(self, device: torch.device, vocab_size: int) -> None:
        self._device = device
        self._vocab_size = vocab_size
        self.ids = torch.zeros(_FIRST_SEATS, _FIRST_COLUMNS, dtype=torch.int64, device=device)
        self.counts = torch.zeros_like(self.ids)
        """Of each distinct token in the output; 0 for those of the prompt alone."""
        self.num_distinct = torch.zeros(_FIRST_SEATS, dtype=torch.int64, device=device)
        self.last_tokens = torch.full((_FIRST_SEATS, 0), -1, dtype=torch.int64, device=device)
        """The newest output tokens, right-aligned; -1 before the first."""
        self._max_distinct = np.zeros(_FIRST_SEATS, np.int64)
        """Bounds of `num_distinct` that are known without waiting for the device."""
        self._free = list(range(_FIRST_SEATS - 1, -1, -1))

    @property
    def num_free_seats(self) -> int:
        return len(self._free)

    def add(self, prompt_ids: np.ndarray, output_ids: np.ndarray, num_last_tokens: int) -> int:
        """A seat for a sequence with these tokens; `num_last_tokens` of it will be looked at.

        `prompt_ids` are those that count as seen: none where only outputs do.
        """
        if not self._free:
            self._grow_seats()
        seat = self._free.pop()
        times = Counter(dict.fromkeys(prompt_ids.tolist(), 0))
        times.update(output_ids.tolist())
        self._fit(len(times), num_last_tokens)
        self.ids[seat, : len(times)] = self._tensor(list(times))
        self.counts[seat, : len(times)] = self._tensor(list(times.values()))
        self.num_distinct[seat] = self._max_distinct[seat] = len(times)
        width = self.last_tokens.shape[1]
        last = output_ids[max(0, len(output_ids) - width) :].tolist()
        self.last_tokens[seat] = self._tensor([-1] * (width - len(last)) + last)
        return seat

    def remove(self, seat: int) -> None:
        self._free.append(seat)

    def width(self, seats: np.ndarray) -> int:
        """Columns that hold all distinct tokens of these seats."""
        return int(self._max_distinct[seats].max(initial=0))

    def record(self, seats: np.ndarray, token_ids_R: torch.Tensor) -> None:
        """Each of these seats, all different, has drawn a token."""
        self._fit(self.width(seats) + 1, 0)
        width = min(self.width(seats) + 1, self.ids.shape[1])
        which = to_device(seats, self._device)
        num_distinct = self.num_distinct[which]
        columns = torch.arange(width, device=self._device)
        is_known = columns < num_distinct.unsqueeze(1)
        matches = (self.ids[which, :width] == token_ids_R.unsqueeze(1)) & is_known
        is_found = matches.any(1)
        places = torch.where(is_found, matches.long().argmax(1), num_distinct)
        before = torch.where(is_found, self.counts[which, places], 0)
        self.ids[which, places] = token_ids_R
        self.counts[which, places] = before + 1
        self.num_distinct[which] = num_distinct + ~is_found
        self.last_tokens[which] = torch.cat(
            [self.last_tokens[which], token_ids_R.unsqueeze(1)], dim=1
        )[:, 1:]
        self._max_distinct[seats] = np.minimum(self._max_distinct[seats] + 1, self._vocab_size)

    def _fit(self, num_columns: int, num_last_tokens: int) -> None:
        missing = min(num_columns, self._vocab_size) - self.ids.shape[1]
        if missing > 0:
            extra = max(missing, self.ids.shape[1])
            self.ids = torch.nn.functional.pad(self.ids, (0, extra))
            self.counts = torch.nn.functional.pad(self.counts, (0, extra))
        missing = num_last_tokens - self.last_tokens.shape[1]
        if missing > 0:
            # Those seated before never look further back than what they have.
            self.last_tokens = torch.nn.functional.pad(self.last_tokens, (missing, 0), value=-1)

    def _grow_seats(self) -> None:
        num_seats = len(self.num_distinct)
        self.ids = torch.nn.functional.pad(self.ids, (0, 0, 0, num_seats))
        self.counts = torch.nn.functional.pad(self.counts, (0, 0, 0, num_seats))
        self.num_distinct = torch.nn.functional.pad(self.num_distinct, (0, num_seats))
        self.last_tokens = torch.nn.functional.pad(self.last_tokens, (0, 0, 0, num_seats), value=-1)
        self._max_distinct = np.concatenate([self._max_distinct, np.zeros(num_seats, np.int64)])
        self._free += range(2 * num_seats - 1, num_seats - 1, -1)

    def _tensor(self, values: list[int]) -> torch.Tensor:
        return to_device(np.array(values, np.int64), self._device)
