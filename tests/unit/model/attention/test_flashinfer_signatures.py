"""FlashInfer takes the calls that its stand-in takes: skipped where it is not installed.

It can be imported without a GPU, so what can be checked without one is whether calls fit.
"""

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.unit.model.attention import flashinfer_double
from tests.unit.model.attention.paged_case import make_case
from tokasaurus.model.attention import flashinfer_backend
from tokasaurus.model.attention.flashinfer_backend import FlashInferBackend

flashinfer = pytest.importorskip("flashinfer")
CPU = torch.device("cpu")


class CheckedCalls:
    """The stand-in, where each call is first bound to the real one's signature."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.module = ModuleType("flashinfer")
        for name in ("append_paged_kv_cache", "merge_state_in_place"):
            double = getattr(flashinfer_double, name)
            setattr(self.module, name, self._checked(name, getattr(flashinfer, name), double))
        for name in (
            "BatchPrefillWithPagedKVCacheWrapper",
            "BatchDecodeWithPagedKVCacheWrapper",
        ):
            setattr(self.module, name, self._checked_class(name))

    def _checked_class(self, name: str) -> type:
        double, real = getattr(flashinfer_double, name), getattr(flashinfer, name)
        methods = {
            method: self._checked(
                f"{name}.{method}",
                # Where `plan` takes anything for compatibility, this one says what it means.
                getattr(real, f"_{method}_impl", getattr(real, method)),
                getattr(double, method),
            )
            for method in ("__init__", "plan", "run")
        }
        return type(name, (double,), methods)

    def _checked(
        self, name: str, real: Callable[..., Any], double: Callable[..., Any]
    ) -> Callable[..., Any]:
        signature = inspect.signature(real)

        def call(*args: Any, **kwargs: Any) -> Any:
            signature.bind(*args, **kwargs)
            self.names.add(name)
            return double(*args, **kwargs)

        return call


def test_every_call_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = CheckedCalls()
    monkeypatch.setitem(sys.modules, "flashinfer", calls.module)
    monkeypatch.setattr(flashinfer_backend, "find_spec", lambda name: name)
    monkeypatch.setattr(flashinfer_backend, "_WORKSPACE_BYTES", 64)
    case = make_case(
        seed=0,
        prefill=[(20, 7)],
        decode=[5, 22, 19],
        page_size=4,
        num_kv_heads=1,
        group_size=4,
        head_dim=64,
        shared=(1, 2, 3),
        sliding_window=None,
        logit_softcap=None,
    )
    options = {"page_size": case.page_size, "dtype": torch.bfloat16, "device": CPU}
    backend = FlashInferBackend((case.layer,), **options)
    case.run(backend, torch.bfloat16)
    decodes = make_case(
        seed=0,
        prefill=[],
        decode=[5, 6],
        page_size=4,
        num_kv_heads=1,
        group_size=4,
        head_dim=64,
        shared=None,
        sliding_window=None,
        logit_softcap=None,
    )
    backend.reserve_graphs([2], 64)
    backend.plan_for_graph(decodes.batch)
    assert calls.names == {
        "append_paged_kv_cache",
        "merge_state_in_place",
        *(
            f"Batch{kind}WithPagedKVCacheWrapper.{method}"
            for kind in ("Prefill", "Decode")
            for method in ("__init__", "plan", "run")
        ),
    }
