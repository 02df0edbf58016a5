"""Steps whose tokens are divided between the tensor-parallel ranks, as in sequence parallelism
(Korthikanti et al., arXiv:2205.05198).

Residuals and norms see a rank's own tokens. Column layers gather their input, row layers scatter
their sums: as many bytes as an all-reduce, but each can be sent, piece by piece, while the product
that it belongs to is computed.

Shapes: T tokens of the step, S of each rank (the last ones may be padding), D hidden size, K input
features, N output features.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from tokasaurus.model.parallel import RankGroup


class DividedProducts(Protocol):
    """A product together with the exchange before or behind it."""

    def gathered(self, x_SK: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
        """All ranks' x, one below the other, times this rank's weight."""

    def scattered(self, x_K: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
        """This rank's rows, SN, of the sum over the ranks of x times weight."""


@dataclass(frozen=True, slots=True)
class SeparateProducts:
    """First the exchange, then the product, or the other way around."""

    group: RankGroup

    def gathered(self, x_SK: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
        return F.linear(torch.cat(self.group.all_gather(x_SK)), weight_NK)

    def scattered(self, x_K: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
        return self.group.reduce_scatter(F.linear(x_K, weight_NK))


@dataclass(frozen=True, slots=True)
class FusedProducts:
    """Torch's operators that overlap the two over symmetric memory."""

    group_name: str
    """Of the ranks' process group among those that torch knows by name."""
    process_group: Any
    """That group; torch's own reference to it is a weak one."""

    def gathered(self, x_SK: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
        _, products = torch.ops.symm_mem.fused_all_gather_matmul(
            x_SK.contiguous(), [weight_NK.t()], 0, self.group_name, return_A=False
        )
        return products[0]

    def scattered(self, x_K: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
        return torch.ops.symm_mem.fused_matmul_reduce_scatter(
            x_K.contiguous(), weight_NK.t(), "sum", 0, self.group_name
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DividedTokens:
    """How one step's tokens lie on the ranks: in order, S on each."""

    num_tokens: int
    group: RankGroup
    products: DividedProducts

    @property
    def num_padding(self) -> int:
        return -self.num_tokens % self.group.size

    def share(self, x_TD: torch.Tensor) -> torch.Tensor:
        """This rank's rows, SD, of what all ranks have."""
        return self._padded(x_TD).chunk(self.group.size)[self.group.rank]

    def whole(self, x_SD: torch.Tensor) -> torch.Tensor:
        """TD on every rank."""
        return torch.cat(self.group.all_gather(x_SD))[: self.num_tokens]

    def sum(self, x_TD: torch.Tensor) -> torch.Tensor:
        """This rank's rows, SD, of the sum over the ranks."""
        return self.group.reduce_scatter(self._padded(x_TD))

    def column_product(self, x_SK: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
        """TN of this rank's output features."""
        return self.products.gathered(x_SK, weight_NK)[: self.num_tokens]

    def row_product(self, x_TK: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
        """SN, summed over the ranks' input features."""
        return self.products.scattered(self._padded(x_TK), weight_NK)

    def _padded(self, x_T: torch.Tensor) -> torch.Tensor:
        return F.pad(x_T, (0, 0, 0, self.num_padding)) if self.num_padding else x_T


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDivision:
    """Which steps divide their tokens."""

    threshold: int
    """Fewest tokens of such a step."""
    group: RankGroup
    products: DividedProducts

    def of(self, num_tokens: int) -> DividedTokens | None:
        if num_tokens < self.threshold:
            return None
        return DividedTokens(num_tokens=num_tokens, group=self.group, products=self.products)
