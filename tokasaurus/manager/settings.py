"""What the manager needs to know of the engine's configuration."""

from dataclasses import dataclass

from tokasaurus.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerSettings:
    """Validated limits and switches of one manager."""

    dp_rank: int = 0
    page_size: int = 16
    """Tokens per KV block."""
    max_tokens_per_forward: int = 2048
    """Prefill and decode tokens of one step."""
    max_seqs_per_forward: int = 1024
    """Sequences that run at a time."""
    scheduling_steps_ahead: int = 1
    """Steps sent to the worker beyond the one it executes."""
    max_decode_repeats: int = 32
    """Most passes of a step that only decodes, where the worker repeats and nobody waits for single
    tokens; none are repeated with no steps ahead."""
    max_prefill_tokens_per_step: int | None = None
    """Prefill tokens of a step that also decodes; None: whatever the decodes leave."""
    greedy_prefill: bool = True
    """Prefill as soon as possible; else as fast as sequences leave, which spreads their ends."""
    use_hydragen: bool = True
    """Let the worker read shared prefixes once per group, if it can."""
    hydragen_min_group_size: int = 16
    hydragen_min_prefix_len: int = 128
    """Both by `scripts/bench_hydragen.py`."""
    priority_aging_seconds: float = 60.0
    """Waiting for so long is worth one step of priority."""
    stats_interval_seconds: float = 1.0
    step_timeout_seconds: float = 900.0
    """A worker that owes a step for longer hangs."""
    debug_checks: bool = False
    """Check every invariant after every tick (slow)."""
    debug_preempt_every_steps: int = 0
    """Preempt the newest decoding sequence every so many steps; 0 never."""

    def __post_init__(self) -> None:
        minima = {
            "page_size": 1,
            "max_tokens_per_forward": 1,
            "max_seqs_per_forward": 1,
            "scheduling_steps_ahead": 0,
            "max_decode_repeats": 1,
            "hydragen_min_group_size": 2,
            "hydragen_min_prefix_len": 1,
            "debug_preempt_every_steps": 0,
        }
        for name, minimum in minima.items():
            if getattr(self, name) < minimum:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least {minimum}")
        if self.priority_aging_seconds <= 0:
            raise ConfigError("priority_aging_seconds must be above 0")
        if self.max_prefill_tokens_per_step is not None and self.max_prefill_tokens_per_step < 1:
            raise ConfigError("max_prefill_tokens_per_step must be at least 1, or None")

    @property
    def num_slots(self) -> int:
        """Sequences that may run at a time; each of them decodes in every step."""
        return min(self.max_seqs_per_forward, self.max_tokens_per_forward)

    def prefill_budget(self, num_decodes: int) -> int:
        """Most prefill tokens of a step with so many decodes."""
        budget = self.max_tokens_per_forward - num_decodes
        if num_decodes and self.max_prefill_tokens_per_step is not None:
            budget = min(budget, self.max_prefill_tokens_per_step)
        return budget

    @property
    def max_steps_in_flight(self) -> int:
        return self.scheduling_steps_ahead + 1
