"""What this runs on, and FlashInfer's kernels: they are compiled once, before anything is timed."""

import importlib.metadata
import multiprocessing
import platform
import re
import shutil
import subprocess
import time
import tomllib
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch

from gpu_check_parts.findings import Findings
from gpu_check_parts.part import CheckError, Setting
from tokasaurus.ipc.messages.to_worker import HydragenGroup
from tokasaurus.model.attention.backend import AttentionBatch, AttentionLayer
from tokasaurus.model.attention.registry import backend_names, create_backend

_PACKAGES = ("torch", "transformers", "triton", "flashinfer-python", "numpy")
_ROOT = Path(__file__).parents[2]
_PAGE_SIZE = 16
_KINDS = {
    "prefill": (2, 0, []),
    "few decodes": (0, 8, []),
    "many decodes": (0, 300, []),
    "a shared prefix": (0, 8, [HydragenGroup(2, 4, 1)]),
}
"""Prefills, decodes and Hydragen groups of a step: each uses another set of kernels."""


def describe(setting: Setting, findings: Findings) -> None:
    versions = {package: _version(package) for package in _PACKAGES}
    name = platform.processor() or platform.machine()
    memory = capability = None
    if setting.is_cuda:
        properties = torch.cuda.get_device_properties(setting.device)
        name, memory = properties.name, properties.total_memory
        capability = f"{properties.major}.{properties.minor}"
    findings.add(
        device=name,
        memory_bytes=memory,
        capability=capability,
        python=platform.python_version(),
        packages=versions,
        nvcc=shutil.which("nvcc"),
        attention_backends=backend_names(setting.device),
        commit=_commit(),
        missing=[package for package in _required_packages() if _version(package) is None],
    )


def compile_kernels(setting: Setting, findings: Findings) -> None:
    """Runs every kind of step once for the head sizes that are measured and tested; in as many
    processes, since most of the time each waits for a few files to compile.

    Raises CheckError where the fastest backend is not the one that runs.
    """
    if not setting.is_cuda:
        findings.add(what="nothing to compile for a CPU")
        return
    tasks = [(head_dim, kind) for head_dim in (64, 128) for kind in _KINDS]
    failed = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(tasks), mp_context=context) as pool:
        futures = {pool.submit(_compile, setting, *task): task for task in tasks}
        for future in as_completed(futures):
            head_dim, kind = futures[future]
            what = f"{kind}, heads of {head_dim}"
            try:
                findings.add(what=what, seconds=future.result())
            except Exception as error:  # noqa: BLE001  (the others are still worth having)
                failed.append(what)
                findings.add(what=what, error=f"{type(error).__name__}: {error}"[:2000])
    if failed:
        raise CheckError(f"kernels that could not be had: {'; '.join(failed)}")


def _compile(setting: Setting, head_dim: int, kind: str) -> float:
    """In a process of its own: one step of this kind; returns the seconds that it took."""
    layer = AttentionLayer(
        index=0, num_heads=32, num_kv_heads=8, head_dim=head_dim, scale=head_dim**-0.5
    )
    began = time.perf_counter()
    backend = create_backend(
        "auto", (layer,), page_size=_PAGE_SIZE, dtype=torch.bfloat16, device=setting.device
    )
    if backend.name != "flashinfer":
        raise CheckError("FlashInfer can't be used here; its wheels belong into --wheels.")
    backend.allocate(2048)
    num_prefills, num_decodes, groups = _KINDS[kind]
    batch = _batch(num_prefills, num_decodes)
    batch.hydragen_groups = groups
    for group in groups:
        starts = batch.block_indptr[group.first_row : group.first_row + group.num_rows]
        batch.block_ids[starts] = batch.block_ids[starts[0]]
    backend.plan(batch)
    shape = (batch.num_tokens, 32, head_dim)
    q = torch.randn(shape, device=setting.device, dtype=torch.bfloat16)
    kv = torch.randn(shape, device=setting.device, dtype=torch.bfloat16)[:, :8]
    backend.run(q, kv, kv, layer)
    setting.synchronize()
    return time.perf_counter() - began


def _batch(num_prefills: int, num_decodes: int) -> AttentionBatch:
    lens = np.array([20] * num_prefills + [1] * num_decodes, np.int32)
    kv_lens = np.array([20] * num_prefills + [40] * num_decodes, np.int32)
    counts = -(-kv_lens // _PAGE_SIZE)
    ends = np.cumsum(counts)
    rows, positions = np.repeat(np.arange(len(lens)), lens), []
    for length, kv_len in zip(lens, kv_lens, strict=True):
        positions.append(np.arange(kv_len - length, kv_len))
    position = np.concatenate(positions)
    blocks = (ends - counts)[rows] + position // _PAGE_SIZE
    return AttentionBatch(
        num_prefill_rows=num_prefills,
        query_lens=lens,
        kv_lens=kv_lens,
        block_indptr=np.concatenate([[0], ends]).astype(np.int32),
        block_ids=np.arange(ends[-1], dtype=np.int32),
        slot_mapping=blocks.astype(np.int64) * _PAGE_SIZE + position % _PAGE_SIZE,
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _required_packages() -> list[str]:
    """What the engine needs, by pyproject.toml."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    return [re.split(r"[^\w.-]", requirement)[0] for requirement in project["dependencies"]]


def _commit() -> str | None:
    if shutil.which("git") is None:
        return None
    command = ["git", "-C", str(_ROOT), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None
