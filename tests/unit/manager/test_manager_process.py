"""Start-up of the manager process, and what it makes of the engine's options."""

import msgspec
import pytest

from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.errors import ConfigError, ProcessFailedError
from tokasaurus.ipc.channels import MemoryChannel
from tokasaurus.ipc.messages.to_manager import (
    CancelRequests,
    RunnerCapabilities,
    ServerHello,
    Shutdown,
    ToManager,
    WorkerReady,
)
from tokasaurus.manager.process import as_one, settings_from_config, wait_for_workers
from tokasaurus.manager.settings import ManagerSettings


def _ready(rank: int, *, async_steps: bool = False) -> WorkerReady:
    return WorkerReady(
        rank=rank,
        capabilities=RunnerCapabilities(async_steps=async_steps),
        num_blocks=8,
        max_model_len=64,
        vocab_size=10,
        description=f"worker {rank}",
    )


def _inbox(*messages: ToManager) -> MemoryChannel[ToManager]:
    inbox: MemoryChannel[ToManager] = MemoryChannel(ToManager)
    for message in messages:
        inbox.send(message)
    return inbox


def test_waits_for_all_workers_and_remembers_servers() -> None:
    inbox = _inbox(_ready(1), ServerHello(0, "a"), CancelRequests([1]), _ready(0), Shutdown())
    started = wait_for_workers(inbox, 2, 1.0)
    assert started is not None
    workers, hellos = started
    assert [worker.rank for worker in workers] == [0, 1]
    assert hellos == [ServerHello(0, "a")]


def test_workers_together_have_the_blocks_of_the_smallest() -> None:
    first, second = _ready(0), msgspec.structs.replace(_ready(1), num_blocks=5)
    assert as_one([first, second]) == msgspec.structs.replace(first, num_blocks=5)


def test_names_the_workers_that_are_missing() -> None:
    with pytest.raises(ProcessFailedError, match=r"workers \[0, 2\]"):
        wait_for_workers(_inbox(_ready(1)), 3, 0.0)


def test_shutdown_before_the_workers_are_ready() -> None:
    assert wait_for_workers(_inbox(Shutdown()), 1, 1.0) is None


def test_steps_ahead_default_to_what_suits_the_runner() -> None:
    config = EngineConfig()
    assert settings_from_config(config, 0, _ready(0)).scheduling_steps_ahead == 1
    assert settings_from_config(config, 0, _ready(0, async_steps=True)).scheduling_steps_ahead == 2
    config.scheduling_steps_ahead = 0
    assert settings_from_config(config, 0, _ready(0)).max_steps_in_flight == 1


def test_settings_name_what_is_out_of_range() -> None:
    with pytest.raises(ConfigError, match="page_size=0"):
        ManagerSettings(page_size=0)
