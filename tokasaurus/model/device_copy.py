"""Copies from host to device that the host does not wait for."""

import numpy as np
import torch


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array on `device`. On a GPU the copy runs in stream order, through pinned memory: from
    ordinary memory the host would wait until the GPU has caught up. On a CPU it shares memory.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type != "cuda":
        return tensor.to(device)
    # The pinned memory comes from torch's cache, which hands it out again once the copy is done.
    return tensor.pin_memory().to(device, non_blocking=True)
