"""Our entry in transformers' attention interface: paged attention under any model's layers.

Shapes: T tokens of the step, N query heads, K KV heads, H head size of queries and keys.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from tokasaurus.model.attention.backend import AttentionBackend, AttentionLayer

PAGED = "tokasaurus_paged"
"""Name of the attention implementation. It has no mask function, so models build no masks."""


@dataclass(slots=True)
class CurrentStep:
    """What all layers of one model share during a forward pass."""

    backend: AttentionBackend | None = None


@dataclass(slots=True, frozen=True)
class PagedLayer:
    """Hangs on an attention module as its attribute `paged_layer`."""

    spec: AttentionLayer
    step: CurrentStep


def paged_attention(
    module: torch.nn.Module,
    query_1NTH: torch.Tensor,
    key_1KTH: torch.Tensor,
    value_1KTH: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001  (the interface's; rows are in the plan)
    **kwargs: Any,  # noqa: ARG001  (checked once, by `discovery`)
) -> tuple[torch.Tensor, None]:
    """All rows of the step as one sequence of T tokens; returns the output as 1TNH."""
    layer: PagedLayer = module.paged_layer  # type: ignore[assignment]
    backend = layer.step.backend
    assert backend is not None, "attention outside of TransformersModel.forward"
    q, k, v = (x[0].transpose(0, 1) for x in (query_1NTH, key_1KTH, value_1KTH))
    value_dim, head_dim = v.shape[-1], layer.spec.head_dim
    if value_dim < head_dim:
        v = F.pad(v, (0, head_dim - value_dim))
    return backend.run(q, k, v, layer.spec)[None, ..., :value_dim], None


def register() -> None:
    """Make the implementation known to transformers; doing so again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(PAGED, paged_attention)
