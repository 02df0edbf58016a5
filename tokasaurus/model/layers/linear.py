"""Linear layers. QKV and gate-up are one weight each, filled from whatever the checkpoint has.

Over several tensor-parallel ranks, column layers hold a range of the output features each, and row
layers a range of the input features, whose products they sum.

Shapes: T tokens, N query heads, K KV heads, H head size.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from tokasaurus.model.config import TensorSpec
from tokasaurus.model.divided_tokens import DividedTokens
from tokasaurus.model.layers.loading import LoadableLayer
from tokasaurus.model.layers.sharding import HeadShare, share_of
from tokasaurus.model.weights.tensors import CheckpointTensor

LinearKernel = Callable[[torch.Tensor], torch.Tensor]
LinearPacker = Callable[[torch.Tensor, torch.Tensor | None], LinearKernel]
"""Repacks (weight, bias) for a device's kernel and returns the function that multiplies by it."""


class Linear(LoadableLayer):
    """y = x @ weight.T + bias, whole on every rank."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        tensors: TensorSpec,
        *,
        bias: bool,
        weight: torch.nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        self.weight = tensors.empty(out_features, in_features) if weight is None else weight
        self.bias = tensors.empty(out_features) if bias else None
        self._kernel: LinearKernel | None = None

    def finish_loading(self, pack: LinearPacker) -> None:
        """All weights are in place: let a backend repack them for its own kernel."""
        self._kernel = pack(self.weight, self.bias)

    @property
    def kernel(self) -> LinearKernel | None:
        """What loading was finished with, if it was."""
        return self._kernel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._kernel is not None:
            return self._kernel(x)
        return F.linear(x, self.weight, self.bias)


class RowCopies(NamedTuple):
    """Which rows of a checkpoint tensor go where: (rows of the parameter, rows of the tensor)."""

    num_rows: int
    """Of the whole tensor."""
    copies: list[tuple[slice, slice]]


class ColumnLinear(Linear):
    """This rank's range of the output features."""

    def __init__(
        self, in_features: int, out_features: int, tensors: TensorSpec, *, bias: bool
    ) -> None:
        self.whole_size = out_features
        self.share = share_of(out_features, tensors.parallel)
        super().__init__(in_features, len(self.share), tensors, bias=bias)

    def load(self, part: str, parameter: str, source: CheckpointTensor) -> None:
        target = self.parameter(parameter)
        num_rows, copies = self.row_copies(part)
        source.expect_shape((num_rows, *target.shape[1:]))
        for ours, theirs in copies:
            source.copy_to(target[ours], theirs)

    def row_copies(self, part: str) -> RowCopies:
        """What a part of the checkpoint fills."""
        assert part == "", f"{type(self).__name__} has no part {part}"
        return RowCopies(self.whole_size, [(slice(None), slice(self.share.start, self.share.stop))])

    def forward(self, x: torch.Tensor, divided: DividedTokens | None = None) -> torch.Tensor:
        """Of all tokens, also where each rank has some of them."""
        if divided is None:
            return super().forward(x)
        y = divided.column_product(x, self.weight)
        return y if self.bias is None else y + self.bias


class RowLinear(Linear):
    """This rank's range of the input features; the result is the sum over the ranks, or with
    `is_partial` what this rank adds to it."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        tensors: TensorSpec,
        *,
        bias: bool,
        is_partial: bool = False,
    ) -> None:
        assert not (bias and is_partial), "a bias would be added on every rank"
        self.whole_size = in_features
        self.share = share_of(in_features, tensors.parallel)
        super().__init__(len(self.share), out_features, tensors, bias=bias)
        self._parallel = tensors.parallel
        self._is_partial = is_partial

    def load(self, part: str, parameter: str, source: CheckpointTensor) -> None:
        target = self.parameter(parameter)
        if parameter == "bias" or self._parallel.tp_size == 1:
            super().load(part, parameter, source)
            return
        source.expect_shape((target.shape[0], self.whole_size))
        source.copy_to(target, columns=slice(self.share.start, self.share.stop))

    def finish_loading(self, pack: LinearPacker) -> None:
        if self._parallel.tp_size == 1:
            super().finish_loading(pack)
        else:  # the bias is added once, to the sum
            self._kernel = pack(self.weight, None)

    def forward(self, x: torch.Tensor, divided: DividedTokens | None = None) -> torch.Tensor:
        """Of all tokens, or with `divided` of this rank's."""
        if self._parallel.tp_size == 1 or self._is_partial:
            return super().forward(x)
        if divided is not None:
            y = divided.row_product(x, self.weight)
        else:
            y = F.linear(x, self.weight) if self._kernel is None else self._kernel(x)
            y = self._parallel.all_reduce(y)
        return y if self.bias is None else y + self.bias


class QKVLinear(ColumnLinear):
    """Queries, keys and values of this rank's heads in one product; rows are q, then k, then v.

    Parts: "q", "k", "v"; "qkv": the same order in one tensor; "grouped": per KV head its query
    heads, its key head, its value head (Falcon).
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        tensors: TensorSpec,
        *,
        bias: bool,
    ) -> None:
        self._heads = HeadShare.of(num_heads, num_kv_heads, tensors.parallel)
        self.num_heads = len(self._heads.query_heads)
        self.num_kv_heads = len(self._heads.kv_heads)
        self.head_dim = head_dim
        counts = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        self.sizes = tuple(count * head_dim for count in counts)
        Linear.__init__(self, hidden_size, sum(self.sizes), tensors, bias=bias)

    def row_copies(self, part: str) -> RowCopies:
        heads, q_size, kv_size = self._heads, self.sizes[0], self.sizes[1]
        starts = {"q": 0, "k": q_size, "v": q_size + kv_size}
        if part == "grouped":
            copies = [
                (self._rows(first, count, starts[name]), self._rows(theirs, count))
                for name, first, theirs, count in heads.grouped_runs()
            ]
            return RowCopies(heads.num_rows_grouped * self.head_dim, copies)
        wholes = {"q": heads.num_heads, "k": heads.num_kv_heads, "v": heads.num_kv_heads}
        held = {"q": heads.query_heads, "k": heads.kv_heads, "v": heads.kv_heads}
        copies, before = [], 0
        for name in part:
            copies.append(
                (
                    self._rows(0, len(held[name]), starts[name]),
                    self._rows(before + held[name].start, len(held[name])),
                )
            )
            before += wholes[name]
        return RowCopies(before * self.head_dim, copies)

    def _rows(self, first_head: int, num_heads: int, start: int = 0) -> slice:
        first = start + first_head * self.head_dim
        return slice(first, first + num_heads * self.head_dim)

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, divided: DividedTokens | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q TNH, k TKH, v TKH: views of one product."""
        q, k, v = super().forward(x, divided).split(self.sizes, dim=-1)
        kv_shape = (-1, self.num_kv_heads, self.head_dim)
        return q.view(-1, self.num_heads, self.head_dim), k.view(kv_shape), v.view(kv_shape)


class GateUpLinear(ColumnLinear):
    """Gate and up projection in one product. Parts: "gate", "up", "gate_up"."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, tensors: TensorSpec, *, bias: bool
    ) -> None:
        self.whole_size = intermediate_size
        self.share = share_of(intermediate_size, tensors.parallel)
        Linear.__init__(self, hidden_size, 2 * len(self.share), tensors, bias=bias)

    def row_copies(self, part: str) -> RowCopies:
        share, size = self.share, len(self.share)
        gate, up = slice(0, size), slice(size, 2 * size)
        theirs = slice(share.start, share.stop)
        if part != "gate_up":
            return RowCopies(self.whole_size, [({"gate": gate, "up": up}[part], theirs)])
        second = slice(self.whole_size + share.start, self.whole_size + share.stop)
        return RowCopies(2 * self.whole_size, [(gate, theirs), (up, second)])
