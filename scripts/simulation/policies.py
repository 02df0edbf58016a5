"""The ways of admitting work that can be compared, by name, and what the engine's own foresees."""

import numpy as np

from simulation.recording import Prediction
from simulation.replay import Clock, EngineFactory
from tokasaurus.ipc.messages.to_manager import WorkerReady
from tokasaurus.manager.block_usage import usage_at
from tokasaurus.manager.engine import Engine
from tokasaurus.manager.onboarding import ReserveAllTokens, ReserveKnownTokens
from tokasaurus.manager.settings import ManagerSettings
from tokasaurus.manager.simulated_admission import SimulateFuture

_MAX_POINTS = 200


def _default(settings: ManagerSettings, worker: WorkerReady, clock: Clock) -> Engine:
    return Engine(settings, worker, clock=clock)


def _reserve(settings: ManagerSettings, worker: WorkerReady, clock: Clock) -> Engine:
    return Engine(settings, worker, ReserveAllTokens(), clock)


def _preempt(settings: ManagerSettings, worker: WorkerReady, clock: Clock) -> Engine:
    return Engine(settings, worker, ReserveKnownTokens(), clock)


POLICIES: dict[str, EngineFactory] = {
    "default": _default,
    "reserve": _reserve,
    "preempt": _preempt,
}
"""default: the engine's own. reserve: sets max_tokens aside. preempt: admits what fits now."""


def predict(engine: Engine) -> Prediction | None:
    """Blocks that the running sequences are expected to use until the last of them ends."""
    if not isinstance(engine.policy, SimulateFuture):
        return None
    loads = engine.policy.forecast(engine.running).loads
    times = np.unique(np.linspace(0, loads.ends.max(initial=0), _MAX_POINTS).astype(np.int64))
    return times, usage_at(loads, times, engine.settings.page_size)
