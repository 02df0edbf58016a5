"""The ways of admitting work that can be compared, by name."""

from simulation.recording import Prediction
from simulation.replay import EngineFactory
from tokasaurus.ipc.messages.to_manager import WorkerReady
from tokasaurus.manager.engine import Engine
from tokasaurus.manager.onboarding import ReserveAllTokens, ReserveKnownTokens
from tokasaurus.manager.settings import ManagerSettings


def _reserve(settings: ManagerSettings, worker: WorkerReady) -> Engine:
    return Engine(settings, worker, ReserveAllTokens())


def _preempt(settings: ManagerSettings, worker: WorkerReady) -> Engine:
    return Engine(settings, worker, ReserveKnownTokens())


POLICIES: dict[str, EngineFactory] = {
    "default": Engine,
    "reserve": _reserve,
    "preempt": _preempt,
}
"""default: the engine's own. reserve: sets max_tokens aside. preempt: admits what fits now."""


def predict(engine: Engine) -> Prediction | None:  # noqa: ARG001
    return None
