"""The interface between the worker's loop and what runs the model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tokasaurus.ipc.messages.to_manager import RunnerCapabilities, StepOutput
from tokasaurus.ipc.messages.to_worker import StepInput

Progress = Callable[[float, str], None]
"""Called with the fraction that is done, 0..1, and a text for people."""


@dataclass(frozen=True, slots=True)
class GoesOn:
    """Asked between two passes of a step: whether there may be another one."""

    ask: Callable[[], bool]
    descriptor: int | None = None
    """The answer is yes while this can't be read, as nothing has come; negative: nothing ever does.
    None: only `ask` knows."""

    def __call__(self) -> bool:
        return self.ask()


always = GoesOn(lambda: True, descriptor=-1)
"""Where nothing can come in between."""


class StepHandle(Protocol):
    """A step that has been launched."""

    def result(self) -> StepOutput:
        """Wait for the step to finish. `wait_seconds` and `execute_seconds` are left at 0."""


class ModelRunner(Protocol):
    """Runs one model on one device: `load`, then `warm_up`, then steps in order.

    Properties are valid after `warm_up`.
    """

    @property
    def capabilities(self) -> RunnerCapabilities: ...

    @property
    def num_blocks(self) -> int:
        """KV blocks that steps may name."""

    @property
    def max_model_len(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def hidden_size(self) -> int:
        """Of embeddings; 0 where the runner makes none."""

    @property
    def description(self) -> str:
        """Path taken, device, dtype and backend, for the start-up line."""

    def load(self, progress: Progress) -> None:
        """Read the weights. Raises ModelError or ConfigError."""

    def warm_up(self, progress: Progress) -> None:
        """Run the largest batches once, then size and allocate the KV cache.

        Raises ConfigError, with numbers and the option to lower, when memory doesn't suffice.
        """

    def execute(self, step: StepInput, goes_on: GoesOn = always) -> StepHandle:
        """Launch a step; one of several passes (`capabilities.repeats`) as long as `goes_on` says
        so. Where the device works asynchronously (`capabilities.async_steps`) this
        returns before it is done; elsewhere the next step may overwrite this one's result, which
        must have been encoded before."""
