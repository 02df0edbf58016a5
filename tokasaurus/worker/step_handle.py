"""A launched step: what its micro-batches gave, on its way to the host."""

from dataclasses import dataclass, field

import numpy as np
import torch

from tokasaurus.ipc.messages.to_manager import StepOutput
from tokasaurus.model.device_copy import to_device
from tokasaurus.model.sampling.sampler import SampledTokens
from tokasaurus.worker.device_clock import StepTiming
from tokasaurus.worker.prompt_pooling import PooledPrompts
from tokasaurus.worker.prompt_scoring import PromptScores


@dataclass(slots=True, kw_only=True)
class StepResult:
    """What a step or a micro-batch gave, still on the device."""

    sampled: SampledTokens
    prompt_scores: list[PromptScores] = field(default_factory=list)
    pooled: list[PooledPrompts] = field(default_factory=list)
    rows: np.ndarray | None = None
    """int64: the places of a micro-batch's rows among its step's; None: it is the whole step."""

    @classmethod
    def nothing(cls, device: torch.device) -> "StepResult":
        none = torch.empty(0, dtype=torch.int64, device=device)
        return cls(sampled=SampledTokens(token_ids=none))

    @classmethod
    def join(cls, parts: list["StepResult"]) -> "StepResult":
        """A step's micro-batches, of which there is at least one."""
        if len(parts) == 1 and parts[0].rows is None:
            return parts[0]
        rows = np.concatenate([part.rows for part in parts if part.rows is not None])
        sampling = [part.sampled for part in parts if len(part.sampled.token_ids)]
        sampled = SampledTokens.join(sampling) if sampling else parts[0].sampled
        if len(sampled.token_ids):
            sampled = sampled.take(to_device(np.argsort(rows), sampled.token_ids.device))
        return cls(
            sampled=sampled,
            prompt_scores=[scores for part in parts for scores in part.prompt_scores],
            pooled=[pooled for part in parts for pooled in part.pooled],
        )

    def start_copy_to_host(self) -> None:
        """From a GPU; what is copied is there when the device has caught up."""
        for result in (self.sampled, *self.prompt_scores):
            for name in ("token_ids", "logprobs", "top_ids", "top_logprobs"):
                value = getattr(result, name, None)
                if value is not None:
                    setattr(result, name, value.to("cpu", non_blocking=True))
        for pooled in self.pooled:
            pooled.vectors = pooled.vectors.to("cpu", non_blocking=True)


@dataclass(slots=True)
class TorchStepHandle:
    """`StepHandle` of the torch runner."""

    step_id: int
    outcome: StepResult
    num_recompiles: int
    timing: StepTiming | None
    """None where steps run synchronously."""
    bubble_seconds: float = 0.0

    def result(self) -> StepOutput:
        if self.timing is not None:
            self.timing.wait()
        sampled, pooled = self.outcome.sampled, self.outcome.pooled
        slots = [slot for some in pooled for slot in some.slots]
        return StepOutput(
            step_id=self.step_id,
            token_ids=sampled.token_ids.numpy().astype(np.int32),
            logprobs=_array(sampled.logprobs),
            top_ids=None if sampled.top_ids is None else sampled.top_ids.numpy().astype(np.int32),
            top_logprobs=_array(sampled.top_logprobs),
            prompt_logprobs=[scores.message() for scores in self.outcome.prompt_scores],
            num_recompiles=self.num_recompiles,
            device_idle_seconds=0.0 if self.timing is None else self.timing.idle_seconds,
            device_busy_seconds=0.0 if self.timing is None else self.timing.busy_seconds,
            embedded_slots=np.array(slots, np.int32) if slots else None,
            embeddings=(
                np.concatenate([some.vectors.numpy() for some in pooled]) if pooled else None
            ),
            bubble_seconds=self.bubble_seconds,
        )


def _array(tensor: torch.Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.numpy()
