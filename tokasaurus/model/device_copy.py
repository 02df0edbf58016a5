"""Copies from host to device that the host does not wait for."""

import numpy as np
import torch


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array on `device`. On a GPU the copy runs in stream order, through pinned memory: from
    ordinary memory the host would wait until the GPU has caught up. On a CPU it shares memory.
    """
    return pinned(array, device).to(device, non_blocking=True)


def pinned(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array on the host, in memory from which a GPU copies on its own.

    It comes from torch's cache, which hands it out again once the copy is done. For a CPU it is
    the array's own memory.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory() if device.type == "cuda" else tensor
