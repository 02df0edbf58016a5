"""What this runs on, and FlashInfer's kernels: they are compiled once, before anything is timed."""

import importlib.metadata
import platform
import shutil
import subprocess
import time

import numpy as np
import torch

from gpu_check_parts.findings import Findings
from gpu_check_parts.part import CheckError, Setting
from tokasaurus.model.attention.backend import AttentionBatch, AttentionLayer
from tokasaurus.model.attention.registry import backend_names, create_backend

_PACKAGES = ("torch", "transformers", "triton", "flashinfer-python", "numpy")
_PAGE_SIZE = 16


def describe(setting: Setting, findings: Findings) -> None:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "missing"
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
    )


def compile_kernels(setting: Setting, findings: Findings) -> None:
    """Runs every kind of step once for the head sizes that are measured and tested.

    Raises CheckError where the fastest backend is not the one that runs.
    """
    if not setting.is_cuda:
        findings.add(what="nothing to compile for a CPU")
        return
    for head_dim in (64, 128):
        layer = AttentionLayer(
            index=0, num_heads=32, num_kv_heads=8, head_dim=head_dim, scale=head_dim**-0.5
        )
        began = time.perf_counter()
        backend = create_backend(
            "auto",
            (layer,),
            page_size=_PAGE_SIZE,
            dtype=torch.bfloat16,
            device=setting.device,
        )
        if backend.name != "flashinfer":
            raise CheckError("FlashInfer can't be used here; its wheels belong into --wheels.")
        backend.allocate(2048)
        for num_prefills, num_decodes in ((1, 2), (0, 300)):
            backend.plan(_batch(num_prefills, num_decodes))
            num_tokens = 20 * num_prefills + num_decodes
            q = torch.randn(num_tokens, 32, head_dim, device=setting.device, dtype=torch.bfloat16)
            kv = torch.randn(num_tokens, 8, head_dim, device=setting.device, dtype=torch.bfloat16)
            backend.run(q, kv, kv, layer)
        setting.synchronize()
        findings.add(what=f"kernels for heads of {head_dim}", seconds=time.perf_counter() - began)


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


def _commit() -> str | None:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None
