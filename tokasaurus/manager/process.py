"""Main of the manager process: waits for its workers, then serves until it is told to stop."""

import gc
import logging
import time

import msgspec

from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.errors import ProcessFailedError
from tokasaurus.ipc.addresses import Addresses
from tokasaurus.ipc.channels import Inbox, ZmqBroadcast, ZmqInbox, ZmqOutbox
from tokasaurus.ipc.messages.to_manager import ServerHello, Shutdown, ToManager, WorkerReady
from tokasaurus.ipc.messages.to_supervisor import Ready
from tokasaurus.manager.loop import Manager
from tokasaurus.manager.settings import ManagerSettings

log = logging.getLogger(__name__)

GC_THRESHOLD = 100_000
"""Queued requests are many long-lived objects that hold no cycles."""


def run_manager(config: EngineConfig, addresses: Addresses, dp_rank: int, num_workers: int) -> None:
    """Run until `Shutdown` comes.

    Raises ProcessFailedError when the workers are not ready in time.
    """
    inbox: ZmqInbox[ToManager] = ZmqInbox(addresses.manager(dp_rank), ToManager)
    supervisor = ZmqOutbox(addresses.supervisor())
    started = wait_for_workers(inbox, num_workers, config.ready_timeout_seconds)
    if started is not None:
        workers, hellos = started
        ranks = range(num_workers)
        steps = ZmqBroadcast([addresses.worker(dp_rank, rank) for rank in ranks])
        worker = as_one(workers)
        manager = Manager(
            settings_from_config(config, dp_rank, worker),
            worker,
            inbox,
            [steps],
            ZmqOutbox,
            worker_pids=[worker.pid for worker in workers],
        )
        for hello in hellos:
            manager.greet(hello)
        num_kv_tokens = worker.num_blocks * config.page_size
        text = f"{worker.description}, KV cache {num_kv_tokens:,} tokens"
        supervisor.send(Ready(process=f"manager{dp_rank}", text=text))
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        manager.run()
        if num_workers > 1:
            # After the last step: a worker that left earlier would leave the others waiting for it.
            steps.send(Shutdown())
        steps.close()
    supervisor.close()
    inbox.close()


def wait_for_workers(
    inbox: Inbox[ToManager], num_workers: int, timeout_seconds: float
) -> tuple[list[WorkerReady], list[ServerHello]] | None:
    """The workers by rank and the servers that said hello meanwhile; None if told to shut down."""
    workers: dict[int, WorkerReady] = {}
    hellos: list[ServerHello] = []
    deadline = time.monotonic() + timeout_seconds
    while len(workers) < num_workers:
        message = inbox.receive(max(0.0, deadline - time.monotonic()))
        match message:
            case WorkerReady(rank=rank):
                workers[rank] = message
            case ServerHello():
                hellos.append(message)
            case Shutdown():
                return None
            case None:
                missing = sorted(set(range(num_workers)) - set(workers))
                raise ProcessFailedError(
                    f"workers {missing} were not ready after {timeout_seconds:.0f} s; "
                    "see their logs, or raise ready_timeout_seconds"
                )
            case _:
                log.warning("ignored a %s before the workers are ready", type(message).__name__)
    return [workers[rank] for rank in sorted(workers)], hellos


def as_one(workers: list[WorkerReady]) -> WorkerReady:
    """What the workers of a replica can do together."""
    num_blocks = min(worker.num_blocks for worker in workers)
    return msgspec.structs.replace(workers[0], num_blocks=num_blocks)


def settings_from_config(
    config: EngineConfig, dp_rank: int, worker: WorkerReady
) -> ManagerSettings:
    steps_ahead = config.scheduling_steps_ahead
    if steps_ahead is None:
        # One step waits at the worker while it runs another; overlapped steps want one more.
        steps_ahead = 2 if worker.capabilities.async_steps else 1
    return ManagerSettings(
        dp_rank=dp_rank,
        page_size=config.page_size,
        max_tokens_per_forward=config.max_tokens_per_forward,
        max_seqs_per_forward=config.max_seqs_per_forward,
        scheduling_steps_ahead=steps_ahead,
        max_decode_repeats=config.max_decode_repeats,
        max_prefill_tokens_per_step=config.max_prefill_tokens_per_step,
        greedy_prefill=config.greedy_prefill,
        use_hydragen=config.use_hydragen,
        hydragen_min_group_size=config.hydragen_min_group_size,
        hydragen_min_prefix_len=config.hydragen_min_prefix_len,
        step_timeout_seconds=config.step_timeout_seconds,
        debug_checks=config.debug_checks,
        debug_preempt_every_steps=config.debug_preempt_every_steps,
    )
