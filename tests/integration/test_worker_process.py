"""A worker process by itself: it loads the demo model, answers steps and shuts down."""

import multiprocessing
from collections.abc import Iterator

import numpy as np
import pytest

from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.errors import TokasaurusError
from tokasaurus.ipc.addresses import Addresses
from tokasaurus.ipc.channels import ZmqInbox, ZmqOutbox
from tokasaurus.ipc.messages.to_manager import (
    Shutdown,
    StepOutput,
    TokenSampling,
    ToManager,
    WorkerReady,
)
from tokasaurus.ipc.messages.to_supervisor import Progress, ToSupervisor
from tokasaurus.ipc.messages.to_worker import AddedSlot, StepInput

TIMEOUT_SECONDS = 120.0


@pytest.fixture
def addresses() -> Iterator[Addresses]:
    addresses = Addresses.create()
    yield addresses
    addresses.remove()


def run(config_json: str, addresses: Addresses) -> None:
    from tokasaurus.worker.process import run_worker

    try:
        run_worker(EngineConfig.from_json(config_json), addresses, 0, 0)
    except TokasaurusError:
        raise SystemExit(3) from None


def start(config: EngineConfig, addresses: Addresses) -> multiprocessing.Process:
    process = multiprocessing.get_context("spawn").Process(
        target=run, args=(config.to_json(), addresses), daemon=True
    )
    process.start()
    return process


def test_worker_answers_steps(addresses: Addresses) -> None:
    manager: ZmqInbox[ToManager] = ZmqInbox(addresses.manager(0), ToManager)
    supervisor: ZmqInbox[ToSupervisor] = ZmqInbox(addresses.supervisor(), ToSupervisor)
    config = EngineConfig()
    config.cpu_threads = 1
    config.attention_backend = "torch"
    config.kv_cache_num_tokens = 1024
    process = start(config, addresses)
    worker = ZmqOutbox(addresses.worker(0, 0))
    ready = manager.receive(TIMEOUT_SECONDS)
    assert isinstance(ready, WorkerReady)
    assert ready.num_blocks == 1024 // config.page_size
    assert "native" in ready.description
    phases: set[str] = set()
    while not {"load", "warm-up"} <= phases:
        message = supervisor.receive(TIMEOUT_SECONDS)
        assert isinstance(message, Progress)
        phases.add(message.phase)

    none = np.empty(0, np.int32)
    worker.send(
        StepInput(
            step_id=0,
            freed_slots=none,
            added_slots=[AddedSlot(0, 0, 3, TokenSampling(temperature=0.0))],
            appended_slots=np.array([0], np.int32),
            appended_blocks=np.array([5], np.int32),
            prefill_slots=np.array([0], np.int32),
            prefill_lens=np.array([3], np.int32),
            prefill_samples=np.array([True]),
            prefill_ids=np.array([5, 6, 7], np.int32),
            decode_slots=none,
            hydragen_groups=[],
        )
    )
    output = manager.receive(TIMEOUT_SECONDS)
    assert isinstance(output, StepOutput)
    assert 0 <= output.token_ids[0] < ready.vocab_size
    assert output.execute_seconds > 0
    worker.send(Shutdown())
    process.join(TIMEOUT_SECONDS)
    assert process.exitcode == 0
    for channel in (manager, supervisor, worker):
        channel.close()


def test_cache_that_does_not_fit_ends_the_worker(addresses: Addresses) -> None:
    config = EngineConfig()
    config.cpu_threads = 1
    config.attention_backend = "torch"
    config.kv_cache_num_tokens = 10**12
    process = start(config, addresses)
    process.join(TIMEOUT_SECONDS)
    assert process.exitcode == 3
