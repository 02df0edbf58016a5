"""Main of a worker process: load, warm up, say so to the manager, then run the loop.

Errors are raised to the caller, which reports them to the supervisor; so is the parent's death
handled there.
"""

import gc
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from tokasaurus.config.compile_options import read_compile_options
from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.config.model_files import (
    ModelConfig,
    read_model_config,
    resolve_model,
    resolve_tokenizer,
)
from tokasaurus.errors import ConfigError
from tokasaurus.ipc.addresses import Addresses
from tokasaurus.ipc.channels import Inbox, Outbox, ZmqInbox, ZmqOutbox
from tokasaurus.ipc.messages.to_manager import WorkerReady
from tokasaurus.ipc.messages.to_supervisor import Progress as ProgressMessage
from tokasaurus.ipc.messages.to_worker import ToWorker
from tokasaurus.model.attention.backend import CausalModel
from tokasaurus.model.kernels.loader import kernels_available
from tokasaurus.model.parallel import ParallelContext, PeerLostError
from tokasaurus.model.quantization.scheme import quantization_scheme
from tokasaurus.model.registry import FAMILIES, load_model
from tokasaurus.tokenization.tokenizer import Tokenizer
from tokasaurus.worker.forward_pass import ForwardOptions
from tokasaurus.worker.loop import WorkerLoop
from tokasaurus.worker.rendezvous import join_replica
from tokasaurus.worker.replica import ALONE_REPLICA, Replica
from tokasaurus.worker.runner import ModelRunner, Progress
from tokasaurus.worker.torch_runner import RunnerSettings, TorchRunner

_logger = logging.getLogger(__name__)

_PROGRESS_INTERVAL_SECONDS = 0.1
_CPU_TOPOLOGY = "/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"


def run_worker(config: EngineConfig, addresses: Addresses, dp_rank: int, rank: int) -> None:
    """Serve one replica's steps until the manager or the supervisor says `Shutdown`.

    Raises ModelError or ConfigError when the model can't be loaded or does not fit.
    """
    name = f"worker{dp_rank}.{rank}"
    inbox: ZmqInbox[ToWorker] = ZmqInbox(addresses.worker(dp_rank, rank), ToWorker)
    supervisor = ZmqOutbox(addresses.supervisor())
    manager = ZmqOutbox(addresses.manager(dp_rank))
    try:
        num_workers = config.pp_size * config.tp_size
        index = dp_rank * num_workers + rank
        place_threads(config.cpu_threads, index, config.dp_size * num_workers)
        device = choose_device(config.device, index)
        if device.type == "cuda":
            torch.cuda.set_device(device)  # kernels of others launch on the current one
        replica = join_replica(config, addresses, dp_rank, rank, device)
        try:
            _serve(config, name, device, replica, inbox, supervisor, manager)
        except PeerLostError as error:
            if replica.roll_call is None:
                raise
            raise replica.roll_call.explain(error) from error
    finally:
        for channel in (inbox, supervisor, manager):
            channel.close()


def _serve(
    config: EngineConfig,
    name: str,
    device: torch.device,
    replica: Replica,
    inbox: Inbox[ToWorker],
    supervisor: Outbox,
    manager: Outbox,
) -> None:
    """Load, warm up and run steps."""
    runner = build_runner(config, device, replica)
    times = [time.perf_counter()]
    runner.load(_phase(supervisor, name, "load"))
    times.append(time.perf_counter())
    runner.warm_up(_phase(supervisor, name, "warm-up"))
    times.append(time.perf_counter())
    manager.send(
        WorkerReady(
            rank=replica.parallel.rank,
            capabilities=runner.capabilities,
            num_blocks=runner.num_blocks,
            max_model_len=runner.max_model_len,
            vocab_size=runner.vocab_size,
            description=runner.description,
            hidden_size=runner.hidden_size,
            pid=os.getpid(),
        )
    )
    _logger.info(
        "ready (loading took %.1f s, warming up %.1f s): %s",
        times[1] - times[0],
        times[2] - times[1],
        runner.description,
    )
    if device.type == "cpu":
        # NCCL's way to give up ends the process at once; there the manager notices.
        replica.limit_waits(config.step_timeout_seconds)
    parallel = replica.parallel
    answers = parallel.is_last_stage and parallel.tp_rank == 0
    overlap = device.type != "cpu"
    gc.collect()
    gc.freeze()  # torch alone makes half a million objects, which collections need not look at
    WorkerLoop(runner, inbox, manager if answers else None, overlap=overlap).run()


def build_runner(
    config: EngineConfig,
    device: torch.device,
    replica: Replica = ALONE_REPLICA,
) -> ModelRunner:
    """The runner that the options ask for; nothing is loaded yet."""
    num_sharing = config.dp_size * config.pp_size * config.tp_size if device.type == "cpu" else 1
    settings = RunnerSettings(
        device=device,
        attention_backend=config.attention_backend,
        cpu_kernels=config.cpu_kernels,
        quantization=quantization_scheme(config.quantization, config.quantization_group_size),
        page_size=config.page_size,
        kv_cache_num_tokens=config.kv_cache_num_tokens,
        kv_cache_memory_fraction=config.kv_cache_memory_fraction / num_sharing,
        replica=replica,
        kv_cache_dtype=config.kv_cache_dtype,
        forward=ForwardOptions(
            compile_options=(
                read_compile_options(config.torch_compile_config) if config.torch_compile else None
            ),
            use_cudagraphs=config.use_cudagraphs,
            cudagraph_max_size=config.cudagraph_max_size,
            cudagraph_step=config.cudagraph_step,
        ),
        max_tokens_per_forward=config.max_tokens_per_forward,
        max_seqs_per_forward=config.max_seqs_per_forward,
        load_tokenizer=partial(_load_tokenizer, config),
    )
    return TorchRunner(settings, partial(_load, config, device, replica.parallel))


def choose_device(device: str, worker_index: int) -> torch.device:
    """Worker i of all replicas takes GPU i. Raises ConfigError when there is none."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and num_gpus == 0):
        return torch.device("cpu")
    if worker_index >= num_gpus:
        raise ConfigError(
            f"device={device} with dp_size x pp_size x tp_size above {worker_index} needs at least "
            f"{worker_index + 1} GPUs, but torch sees {num_gpus}; use device=cpu or fewer workers."
        )
    return torch.device("cuda", worker_index)


def place_threads(cpu_threads: int | None, worker_index: int, num_workers: int) -> None:
    """Give each of several workers CPUs of its own, one for each computing thread: by default as
    many as the environment asks for, which knows limits that an affinity does not show. Where such
    a limit leaves cores over, the system chooses among them.
    """
    if cpu_threads is not None:
        torch.set_num_threads(cpu_threads)
    share = torch.get_num_threads()
    if num_workers > 1 and hasattr(os, "sched_setaffinity"):
        cores = group_by_core(os.sched_getaffinity(0))
        mine = cpus_of_worker(cores, share, worker_index, num_workers)
        takes_all = share * num_workers >= len(cores)
        if len(mine) == share and (takes_all or cpu_threads is not None):
            os.sched_setaffinity(0, mine)
    _logger.info("computing with %d threads", share)


def group_by_core(cpus: set[int], topology: str = _CPU_TOPOLOGY) -> list[list[int]]:
    """The logical CPUs of each core, of these.

    `topology` names the file that lists a CPU's siblings, itself among them; without it, every CPU
    counts as a core.
    """
    cores: dict[str, list[int]] = {}
    for cpu in sorted(cpus):
        try:
            core = Path(topology.format(cpu=cpu)).read_text(encoding="ascii")
        except OSError:
            core = f"cpu{cpu}"
        cores.setdefault(core, []).append(cpu)
    return list(cores.values())


def cpus_of_worker(
    cores: list[list[int]], share: int, worker_index: int, num_workers: int
) -> set[int]:
    """`share` CPUs, or fewer if there are none left, of cores that no other worker gets: one of
    each core, then the cores' second ones, and so on."""
    first = worker_index * len(cores) // num_workers
    last = (worker_index + 1) * len(cores) // num_workers
    ranked = sorted((rank, cpu) for core in cores[first:last] for rank, cpu in enumerate(core))
    return {cpu for _, cpu in ranked[:share]}


def choose_dtype(config: EngineConfig, model: ModelConfig, device: torch.device) -> str:
    """ "auto" stays (the checkpoint's own), except where a CPU has no fast way to compute in it:
    torch's own 16-bit products without such instructions take 20 times as long as float32's.
    """
    if config.dtype != "auto" or device.type != "cpu" or model.dtype == "float32":
        return config.dtype
    if model.dtype == "float16":
        is_fast = torch.ops.mkldnn._is_mkldnn_fp16_supported()
    else:
        is_fast = torch.ops.mkldnn._is_mkldnn_bf16_supported() or _kernels_cover(config, model)
    if is_fast:
        return "auto"
    _logger.info("16-bit floats are slow on this CPU: computing in float32")
    return "float32"


def _kernels_cover(config: EngineConfig, model: ModelConfig) -> bool:
    """Whether our kernels compute the linear layers; they are compiled here if need be."""
    return (
        config.cpu_kernels
        and config.attention_backend in ("auto", "cpu")
        and config.model_path != "transformers"
        and model.architecture in FAMILIES
        and kernels_available()
    )


def _load(
    config: EngineConfig, device: torch.device, parallel: ParallelContext, progress: Progress
) -> CausalModel:
    folder = resolve_model(config.model)
    return load_model(
        folder,
        dtype=choose_dtype(config, read_model_config(folder), device),
        device=device,
        model_path=config.model_path,
        load_format=config.load_format,
        max_model_len=config.max_model_len,
        progress=progress,
        parallel=parallel,
        quantization=quantization_scheme(config.quantization, config.quantization_group_size),
    )


def _load_tokenizer(config: EngineConfig) -> Tokenizer:
    return Tokenizer.load(resolve_tokenizer(config.model, config.tokenizer))


def _phase(supervisor: Outbox, name: str, phase: str) -> Callable[[float, str], None]:
    """Reports progress of a phase, at most ten times a second."""
    last_sent = -_PROGRESS_INTERVAL_SECONDS

    def report(fraction: float, text: str) -> None:
        nonlocal last_sent
        now = time.monotonic()
        if fraction < 1 and now - last_sent < _PROGRESS_INTERVAL_SECONDS:
            return
        last_sent = now
        supervisor.send(ProgressMessage(process=name, phase=phase, fraction=fraction, text=text))

    return report
