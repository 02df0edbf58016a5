"""Torch's fused products find our group and are called as they are meant to be.

Their kernels need GPUs; here stand the fallbacks that torch itself compares them with.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import distributed as dist
from torch.distributed import _symmetric_memory

from tests.rank_threads import on_ranks
from tokasaurus.errors import ConfigError
from tokasaurus.model.divided_tokens import DividedTokens, SeparateProducts
from tokasaurus.model.parallel import RankGroup
from tokasaurus.worker import symmetric_memory
from tokasaurus.worker.symmetric_memory import fused_products, register_group

CPU = torch.device("cpu")


@pytest.fixture
def cpu_operators() -> Iterator[None]:
    library = torch.library.Library("symm_mem", "IMPL", "CPU")
    for name in ("fused_all_gather_matmul", "fused_matmul_reduce_scatter"):
        library.impl(name, getattr(_symmetric_memory, f"_{name}_fallback"))
    yield
    library._destroy()


@pytest.mark.usefixtures("cpu_operators")
@pytest.mark.parametrize("num_tokens", [8, 7])
def test_fused_products_equal_separate_ones(num_tokens: int) -> None:
    torch.manual_seed(0)
    x, up, down = torch.randn(num_tokens, 4), torch.randn(6, 4), torch.randn(4, 6)

    @torch.inference_mode()
    def run(group: RankGroup) -> torch.Tensor:
        name = f"fused-{num_tokens}-{group.rank}"  # the ranks share a process
        fused = register_group(group, dist.HashStore(), name, CPU)
        results = []
        for products in (fused, SeparateProducts(group)):
            divided = DividedTokens(num_tokens=num_tokens, group=group, products=products)
            wide = divided.column_product(divided.share(x), up)
            torch.testing.assert_close(wide, x @ up.T)
            results.append(divided.whole(divided.row_product(wide, down)))
        torch.testing.assert_close(*results)
        return results[0]

    for result in on_ranks(2, run):
        torch.testing.assert_close(result, 2 * (x @ up.T) @ down.T)


def test_what_has_no_shared_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    group, store = RankGroup(1, 2), dist.HashStore()
    with pytest.raises(ConfigError, match="leave it out on a CPU"):
        fused_products(group, store, "none", CPU)
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda mine, other: False)
    with pytest.raises(ConfigError, match="GPU 3 can't reach GPU 2"):
        fused_products(group, store, "none", torch.device("cuda", 3))
    monkeypatch.delattr(symmetric_memory._symmetric_memory, "_fused_all_gather_matmul")
    with pytest.raises(ConfigError, match="a torch with symmetric memory"):
        fused_products(group, store, "none", torch.device("cuda", 3))
