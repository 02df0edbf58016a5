"""What the probe makes of masks and attention arguments."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.masking_utils import (
    and_masks,
    causal_mask_function,
    chunked_causal_mask_function,
    or_masks,
    padding_mask_function,
    sliding_window_causal_mask_function,
)

from tokasaurus.model.attention.backend import AttentionLayer
from tokasaurus.model.config import UnsupportedFeatureError
from tokasaurus.model.transformers_path import discovery


@pytest.mark.parametrize("window", [1, 2, 7, 99, 100, 5000])
def test_windows_are_read_from_masks(window: int) -> None:
    mask = sliding_window_causal_mask_function(window)
    assert discovery.window_of_mask("x", mask, 100) == (window if window < 100 else None)


def test_a_causal_mask_has_no_window() -> None:
    assert discovery.window_of_mask("x", causal_mask_function, 100) is None


@pytest.mark.parametrize(
    "mask",
    [
        chunked_causal_mask_function(16, torch.zeros(1, dtype=torch.int64)),
        or_masks(causal_mask_function, lambda b, h, q, k: k < 10),
        and_masks(causal_mask_function, lambda b, h, q, k: k != 3),
        and_masks(causal_mask_function, padding_mask_function(torch.ones(1, 4))),
        lambda b, h, q, k: q >= 0,
    ],
)
def test_other_masks_are_refused(mask: Callable[..., Any]) -> None:
    with pytest.raises(UnsupportedFeatureError, match="mask"):
        discovery.window_of_mask("x", mask, 100)


class FakeModel(torch.nn.Module):
    """Calls the probe as a transformers model would, with the given arguments."""

    device = torch.device("cpu")

    def __init__(self, num_layers: int = 1, **arguments: Any) -> None:
        super().__init__()
        self.attention = [SimpleNamespace(is_causal=True) for _ in range(num_layers)]
        self.arguments = arguments
        self.value_size = 8

    def set_attn_implementation(self, name: str) -> None:
        assert name == discovery.PROBE

    def forward(self, **_: Any) -> None:
        num_tokens = discovery.NUM_PROBE_TOKENS
        query = torch.zeros(1, 4, num_tokens, 8)
        key = torch.zeros(1, 2, num_tokens, 8)
        value = torch.zeros(1, 2, num_tokens, self.value_size)
        for module in self.attention:
            out, _ = discovery._record_attention(module, query, key, value, None, **self.arguments)
            assert out.shape == (1, num_tokens, 4, self.value_size)


def discover(model: FakeModel, num_layers: int = 1) -> AttentionLayer:
    return discovery.discover_attention_layers(model, num_layers, 100)[0][1]


def test_arguments_become_the_layers_spec() -> None:
    layer = discover(
        FakeModel(scaling=0.3, softcap=5.0, sliding_window=12, s_aux=torch.arange(4.0), dropout=0.0)
    )
    assert (layer.num_heads, layer.num_kv_heads, layer.head_dim) == (4, 2, 8)
    assert (layer.scale, layer.logit_softcap, layer.sliding_window) == (0.3, 5.0, 12)
    assert torch.equal(layer.sinks_N, torch.arange(4.0))


def test_the_usual_scale_is_the_default() -> None:
    layer = discover(FakeModel())
    assert layer.scale == pytest.approx(8**-0.5)
    assert (layer.logit_softcap, layer.sliding_window, layer.sinks_N) == (None, None, None)


@pytest.mark.parametrize(
    "arguments", [{"position_bias": torch.ones(1)}, {"head_mask": 1}, {"dropout": 0.1}]
)
def test_unknown_arguments_are_refused_by_name(arguments: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedFeatureError, match=next(iter(arguments))):
        discover(FakeModel(**arguments))


def test_attention_in_both_directions_is_refused() -> None:
    with pytest.raises(UnsupportedFeatureError, match="both directions"):
        discover(FakeModel(is_causal=False))


def test_a_layer_without_attention_is_refused() -> None:
    with pytest.raises(UnsupportedFeatureError, match="2 layers but 1 attention calls"):
        discover(FakeModel(), num_layers=2)


def test_values_larger_than_keys_are_refused() -> None:
    model = FakeModel()
    model.value_size = 16
    with pytest.raises(UnsupportedFeatureError, match="values larger"):
        discover(model)
