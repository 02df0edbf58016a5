"""What a part is given."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tokasaurus.errors import TokasaurusError


class CheckError(TokasaurusError):
    """A part can't do its work here, for the reason given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where and how large to run."""

    device: torch.device
    quick: bool
    """Tiny shapes: to try the code, not to measure."""
    out: Path

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.is_cuda else torch.float32

    def pick(self, full: Any, quick: Any) -> Any:
        return quick if self.quick else full

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)
