"""Shapes and types of the kernels' results, for torch.compile and meta tensors."""

from collections.abc import Callable

import torch


def _linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    out_features: int,
    gated: bool = False,
    bias: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    norm_eps: float = 0.0,
    residual: torch.Tensor | None = None,
    float_output: bool = False,
    kind: int = 0,
    group_size: int = 0,
) -> torch.Tensor:
    del packed, gated, bias, norm_weight, norm_eps, residual, kind, group_size
    dtype = torch.float32 if float_output else x.dtype
    return x.new_empty((x.shape[0], out_features), dtype=dtype)


def _grouped_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    ends: torch.Tensor,
    out_features: int,
    kind: int = 0,
    group_size: int = 0,
) -> torch.Tensor:
    del packed, ends, kind, group_size
    return x.new_empty((x.shape[0], out_features))


def _packed_rows(
    packed: torch.Tensor,
    ids: torch.Tensor,
    in_features: int,
    dtype: torch.dtype,
    kind: int = 0,
    group_size: int = 0,
) -> torch.Tensor:
    del kind, group_size
    return packed.new_empty((ids.numel(), in_features), dtype=dtype)


def _attention(q: torch.Tensor, *args: object) -> torch.Tensor:
    del args
    return q.new_empty(q.shape)


def _decoder_stack(hidden: torch.Tensor, *args: object) -> None:
    del hidden, args


FAKES: dict[str, Callable[..., torch.Tensor | None]] = {
    "linear": _linear,
    "grouped_linear": _grouped_linear,
    "packed_rows": _packed_rows,
    "attention": _attention,
    "decoder_stack": _decoder_stack,
}


def register(namespace: str) -> None:
    """Register the fakes of every operator that a compiled model can contain."""
    for name, fake in FAKES.items():
        torch.library.register_fake(f"{namespace}::{name}", fake)
