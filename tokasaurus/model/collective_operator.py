"""An all-reduce as one torch operator, so that a compiled model of several ranks is one graph."""

import itertools
from collections.abc import Callable

import torch

_NAMESPACE = "tokasaurus_collectives"
_numbers = itertools.count()


class AllReduceOperator:
    """Calls `run`, which sums over the ranks in place, as an operator that a compiler keeps."""

    def __init__(self, run: Callable[[torch.Tensor], None]) -> None:
        name = f"all_reduce_{next(_numbers)}"
        # The operator lives as long as the library does.
        self._library = torch.library.Library(_NAMESPACE, "FRAGMENT")
        self._library.define(f"{name}(Tensor(a!) x) -> ()")
        self._library.impl(name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{_NAMESPACE}::{name}", _nothing, lib=self._library)
        self._call = getattr(getattr(torch.ops, _NAMESPACE), name).default

    def __call__(self, x: torch.Tensor) -> None:
        self._call(x)


def _nothing(x: torch.Tensor) -> None:
    """It returns nothing, and a write in place changes no shape."""
    del x
