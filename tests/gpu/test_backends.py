"""Each attention backend of the device against a float64 oracle; errors are stated per format."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.model.attention.paged_case import PagedCase, make_case
from tokasaurus.errors import ConfigError
from tokasaurus.ipc.messages.to_worker import HydragenGroup
from tokasaurus.model.attention.backend import AttentionBackend, AttentionBatch, AttentionLayer
from tokasaurus.model.attention.registry import create_backend

RELATIVE_ERROR = {torch.bfloat16: 6e-3, torch.float16: 1.5e-3, torch.float32: 1e-5}
"""Of the outputs' norm. FP8 keys and values are off by up to 6% each."""
FP8_RELATIVE_ERROR = 5e-2

CASES: dict[str, dict[str, Any]] = {
    "prefill": {"prefill": [(70, 70), (33, 5), (1, 1)], "decode": []},
    "decode": {"prefill": [], "decode": [1, 2, 16, 17, 100, 300]},
    "mixed": {"prefill": [(40, 13)], "decode": [5, 90, 33]},
    "one head each": {"prefill": [(40, 13)], "decode": [5, 90], "group_size": 1},
    "wide heads": {"prefill": [(40, 13)], "decode": [5, 90], "head_dim": 128},
    "shared prefix": {
        "prefill": [(20, 3)],
        "decode": [7, 40, 55, 130, 9],
        "shared": (1, 3, 2),
    },
    "many rows": {"prefill": [], "decode": [1 + 3 * (i % 40) for i in range(300)]},
}

VARIANTS: dict[str, dict[str, Any]] = {
    "window": {"prefill": [(70, 50)], "decode": [5, 90, 33], "sliding_window": 20},
    "softcap": {"prefill": [(40, 13)], "decode": [5, 90], "logit_softcap": 5.0},
}
"""Each needs further kernels, which take a minute or more to compile."""


class OnDevice:
    """Moves a CPU case's tensors to the backend and back."""

    def __init__(self, backend: AttentionBackend, device: torch.device) -> None:
        self._backend = backend
        self._device = device
        self.allocate = backend.allocate
        self.plan = backend.plan

    def run(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: AttentionLayer
    ) -> torch.Tensor:
        out = self._backend.run(*(x.to(self._device) for x in (q, k, v)), layer)
        return out.cpu()


def case_of(name: str) -> PagedCase:
    defaults = {"seed": 7, "page_size": 16, "num_kv_heads": 2, "group_size": 4, "head_dim": 64}
    return make_case(**{**defaults, **{**CASES, **VARIANTS}[name]})


def make_backend(
    name: str, case: PagedCase, dtype: torch.dtype, device: torch.device, **options: str
) -> AttentionBackend:
    try:
        return create_backend(
            name, (case.layer,), page_size=case.page_size, dtype=dtype, device=device, **options
        )
    except ConfigError as error:
        pytest.skip(str(error))


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


def check(name: str, backend: str, dtype: torch.dtype, device: torch.device) -> None:
    case = case_of(name)
    out = case.run(OnDevice(make_backend(backend, case, dtype, device), device), dtype)  # type: ignore[arg-type]
    assert relative_error(out, case.expected()) < RELATIVE_ERROR[dtype]


@pytest.mark.parametrize("name", CASES)
def test_quick_against_float64(
    name: str, best_backend: str, device: torch.device, dtype: torch.dtype
) -> None:
    check(name, best_backend, dtype, device)


@pytest.mark.parametrize("name", {**CASES, **VARIANTS})
@pytest.mark.parametrize("in_format", ["bfloat16", "float16", "float32"])
def test_quick_torch_against_float64(name: str, in_format: str, device: torch.device) -> None:
    check(name, "torch", getattr(torch, in_format), device)


@pytest.mark.parametrize("name", VARIANTS)
def test_quick_variants_against_float64(
    name: str, best_backend: str, device: torch.device, dtype: torch.dtype
) -> None:
    check(name, best_backend, dtype, device)


def test_quick_variants_in_float16(best_backend: str, device: torch.device) -> None:
    check("mixed", best_backend, torch.float16, device)


@pytest.mark.parametrize("name", ["mixed", "shared prefix"])
def test_quick_variants_fp8_cache(
    name: str, best_backend: str, device: torch.device, dtype: torch.dtype
) -> None:
    case = case_of(name)
    tested = make_backend(best_backend, case, dtype, device, kv_cache_dtype="fp8")
    out = case.run(OnDevice(tested, device), dtype)  # type: ignore[arg-type]
    assert relative_error(out, case.expected()) < FP8_RELATIVE_ERROR


def test_quick_shared_prefixes_give_what_rows_alone_give(
    best_backend: str, device: torch.device, dtype: torch.dtype
) -> None:
    case = case_of("shared prefix")
    together = case.run(OnDevice(make_backend(best_backend, case, dtype, device), device), dtype)  # type: ignore[arg-type]
    groups = case.batch.hydragen_groups
    case.batch.hydragen_groups = []
    alone = case.run(OnDevice(make_backend(best_backend, case, dtype, device), device), dtype)  # type: ignore[arg-type]
    assert groups == [HydragenGroup(1, 3, 2)]
    assert relative_error(together, alone.double()) < RELATIVE_ERROR[dtype]


def test_plans_of_graphs_equal_plans_without(
    best_backend: str, device: torch.device, dtype: torch.dtype
) -> None:
    case = case_of("decode")
    backend: Any = make_backend(best_backend, case, dtype, device)
    if not backend.supports_cuda_graphs:
        pytest.skip(f"{backend.name} has no graphs")
    expected = case.run(OnDevice(backend, device), dtype)  # type: ignore[arg-type]
    backend.reserve_graphs([case.batch.num_rows], 1000)
    batch: AttentionBatch = case.batch
    backend.plan_for_graph(batch)
    key, value = (x.to(device, dtype) for x in case.step_kv())
    out = backend.run(case.queries.to(device, dtype), key, value, case.layer)
    assert relative_error(out.cpu(), expected.double()) < RELATIVE_ERROR[dtype]
    assert np.array_equal(backend._buffers[batch.num_rows].kv_indptr.cpu(), batch.block_indptr)
