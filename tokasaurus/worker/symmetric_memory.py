"""Symmetric memory between the GPUs of a tensor-parallel group, for torch's fused products.

Torch finds the group by its name in a registry of the process; nothing else of ours is in there.
"""

import torch
from torch import distributed as dist
from torch.distributed import _symmetric_memory

from tokasaurus.errors import ConfigError
from tokasaurus.model.divided_tokens import FusedProducts
from tokasaurus.model.parallel import RankGroup


def fused_products(
    group: RankGroup, store: dist.Store, name: str, device: torch.device
) -> FusedProducts:
    """Needs every rank of the group. Raises ConfigError where their GPUs share no memory."""
    _check_gpus(group, device)
    products = register_group(group, store, name, device)
    _symmetric_memory._SymmetricMemory.set_group_info(name, group.rank, group.size, store)
    return products


def register_group(
    group: RankGroup, store: dist.Store, name: str, device: torch.device
) -> FusedProducts:
    """Make the group known to torch by name."""
    is_cuda = device.type == "cuda"
    kind = dist.ProcessGroup.BackendType.NCCL if is_cuda else dist.ProcessGroup.BackendType.GLOO
    whole = dist.ProcessGroup(store, group.rank, group.size)
    whole._register_backend(torch.device(device.type), kind, group.process_group)
    whole._set_default_backend(kind)
    whole._set_group_name(name)  # type: ignore[arg-type]  # torch has a NewType for it
    torch._C._distributed_c10d._register_process_group(name, whole)  # type: ignore[arg-type]
    return FusedProducts(name, whole)


def _check_gpus(group: RankGroup, device: torch.device) -> None:
    if device.type != "cuda":
        raise ConfigError(
            "async_tp_threshold needs NVIDIA GPUs that share memory; leave it out on a "
            f"{device.type.upper()}."
        )
    if not hasattr(_symmetric_memory, "_fused_all_gather_matmul"):
        raise ConfigError(
            f"async_tp_threshold needs a torch with symmetric memory, and {torch.__version__} has "
            "none; leave the option out."
        )
    assert device.index is not None, "a worker has a GPU of its own"
    first = device.index - group.rank
    for other in range(first, first + group.size):
        if other != device.index and not torch.cuda.can_device_access_peer(device, other):
            raise ConfigError(
                f"async_tp_threshold needs GPUs that reach each other's memory, and GPU "
                f"{device.index} can't reach GPU {other}; leave the option out."
            )
