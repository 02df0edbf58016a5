"""Finds out what each layer of a transformers model asks of its attention, by running it once.

A short probe passes through an attention function and a mask function that record their arguments.
Whatever a layer passes along is turned into its `AttentionLayer` or refused by name.

Shapes: T probe tokens, N query heads, K KV heads, H head size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

from tokasaurus.model.attention.backend import AttentionLayer
from tokasaurus.model.config import UnsupportedFeatureError

PROBE = "tokasaurus_probe"

NUM_PROBE_TOKENS = 4

_HONOURED = {"scaling", "sliding_window", "softcap", "s_aux", "is_causal"}

_WITHOUT_EFFECT = {
    "attention_mask",
    "cache_position",
    "layer_idx",
    "position_embeddings",
    "position_ids",
    "target_dtype",
}
"""Arguments that attention functions of transformers take and ignore, or use to build masks."""

MaskFunction = Callable[..., Any]


@dataclass(slots=True, kw_only=True)
class _Call:
    module: torch.nn.Module
    query_shape: torch.Size
    key_shape: torch.Size
    value_shape: torch.Size
    mask: torch.Tensor | None
    arguments: dict[str, Any]


@dataclass(slots=True)
class _Recording:
    calls: list[_Call] = field(default_factory=list)
    masks: list[tuple[torch.Tensor, MaskFunction]] = field(default_factory=list)

    def mask_function(self, mask: torch.Tensor) -> MaskFunction | None:
        for made, function in self.masks:
            if made.data_ptr() == mask.data_ptr():
                return function
        return None


_recording: ContextVar[_Recording] = ContextVar("recording")


def _record_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    _recording.get().calls.append(
        _Call(
            module=module,
            query_shape=query.shape,
            key_shape=key.shape,
            value_shape=value.shape,
            mask=attention_mask,
            arguments=arguments,
        )
    )
    batch, num_heads, num_tokens, _ = query.shape
    return query.new_zeros(batch, num_tokens, num_heads, value.shape[-1]), None


def _record_mask(
    q_length: int, kv_length: int, mask_function: MaskFunction, device: torch.device, **_: Any
) -> torch.Tensor:
    mask = torch.ones(1, 1, q_length, kv_length, dtype=torch.bool, device=device)
    _recording.get().masks.append((mask, mask_function))
    return mask


@contextmanager
def _probing(model: Any) -> Iterator[_Recording]:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(PROBE, _record_attention)
    AttentionMaskInterface.register(PROBE, _record_mask)
    recording = _Recording()
    token = _recording.set(recording)
    model.set_attn_implementation(PROBE)
    try:
        yield recording
    finally:
        _recording.reset(token)


def discover_attention_layers(
    model: Any, num_layers: int, max_model_len: int
) -> list[tuple[torch.nn.Module, AttentionLayer]]:
    """Each attention module with its spec, in the order of execution.

    `model` is left with the probe's implementation. Raises UnsupportedFeatureError for anything
    that paged attention does not compute.
    """
    with _probing(model) as recording, torch.inference_mode():
        ids = torch.arange(1, NUM_PROBE_TOKENS + 1, device=model.device)[None]
        positions = torch.arange(NUM_PROBE_TOKENS, device=model.device)[None]
        model(input_ids=ids, position_ids=positions, use_cache=False)
    name = type(model).__name__
    modules = {id(call.module) for call in recording.calls}
    if len(recording.calls) != num_layers or len(modules) != num_layers:
        raise UnsupportedFeatureError(
            f"{name} has {num_layers} layers but {len(recording.calls)} attention calls in "
            f"{len(modules)} modules; recurrent, shared or mixed layers are not supported."
        )
    return [
        (call.module, _read_call(name, index, call, recording, max_model_len))
        for index, call in enumerate(recording.calls)
    ]


def _read_call(
    name: str, index: int, call: _Call, recording: _Recording, max_model_len: int
) -> AttentionLayer:
    where = f"{name}, layer {index}"
    _refuse_unknown(where, call)
    _, num_heads, _, head_dim = call.query_shape
    arguments = call.arguments
    scale = arguments.get("scaling")
    sinks = arguments.get("s_aux")
    softcap = arguments.get("softcap")
    return AttentionLayer(
        index=index,
        num_heads=num_heads,
        num_kv_heads=call.key_shape[1],
        head_dim=head_dim,
        scale=float(head_dim**-0.5 if scale is None else scale),
        sliding_window=_read_window(where, call, recording, max_model_len),
        logit_softcap=None if softcap is None else float(softcap),
        sinks_N=None if sinks is None else sinks.detach().reshape(-1),
    )


def _refuse_unknown(where: str, call: _Call) -> None:
    for name, value in call.arguments.items():
        has_effect = value is not None and value is not False and name not in _WITHOUT_EFFECT
        if name == "dropout":
            has_effect = bool(value)
        if has_effect and name not in _HONOURED:
            raise UnsupportedFeatureError(f"{where} passes {name} to attention, not supported.")
    is_causal = call.arguments.get("is_causal")
    if is_causal is None:
        is_causal = getattr(call.module, "is_causal", True)
    batch, num_heads, num_tokens, head_dim = call.query_shape
    num_kv_heads = call.key_shape[1]
    if not is_causal:
        raise UnsupportedFeatureError(f"{where} attends in both directions, not supported.")
    if (batch, num_tokens) != (1, NUM_PROBE_TOKENS) or call.key_shape[2] != num_tokens:
        raise UnsupportedFeatureError(f"{where} attends to other tokens than it was given.")
    if num_heads % num_kv_heads or call.key_shape[3] != head_dim:
        raise UnsupportedFeatureError(
            f"{where} has {num_heads} query heads of size {head_dim} for {num_kv_heads} key heads "
            f"of size {call.key_shape[3]}, not supported."
        )
    if call.value_shape[3] > head_dim:
        raise UnsupportedFeatureError(f"{where} has values larger than keys, not supported.")


def _read_window(where: str, call: _Call, recording: _Recording, max_model_len: int) -> int | None:
    """The mask decides; a layer that gets none says its window in an argument."""
    if call.mask is None:
        window = call.arguments.get("sliding_window")
        return window if window and window < max_model_len else None
    function = recording.mask_function(call.mask)
    if function is None:
        raise UnsupportedFeatureError(f"{where} makes its own attention mask, not supported.")
    return window_of_mask(where, function, max_model_len)


def window_of_mask(where: str, function: MaskFunction, max_model_len: int) -> int | None:
    """The sliding window that a mask function describes; None if it is plainly causal."""
    last = max_model_len - 1
    window = int(_visible(where, function, last, max_model_len).sum())
    edges = {0, 1, last // 2, window - 1, window, window + 1, 2 * window - 1, 2 * window, last}
    for query in sorted(edge for edge in edges if 0 <= edge <= last):
        keys = torch.arange(max_model_len)
        expected = (keys <= query) & (keys > query - window)
        if not torch.equal(_visible(where, function, query, max_model_len), expected):
            raise UnsupportedFeatureError(
                f"{where} has an attention mask that is neither causal nor a sliding window, "
                "not supported."
            )
    return window if window < max_model_len else None


def _visible(where: str, function: MaskFunction, query: int, num_keys: int) -> torch.Tensor:
    """bool[num_keys]: which keys the query at this position sees."""
    zero = torch.zeros((), dtype=torch.int64)
    try:
        seen = function(zero, zero, torch.tensor(query), torch.arange(num_keys))
    except (IndexError, RuntimeError, TypeError) as error:
        raise UnsupportedFeatureError(
            f"{where} has an attention mask that depends on more than positions, not supported."
        ) from error
    return torch.as_tensor(seen).expand(num_keys)
