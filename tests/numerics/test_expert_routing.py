"""The same tokens go to the same experts as in transformers, in 16 bits too."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from tests.models import CPU, load
from tests.numerics.batch_driver import PAGE_SIZE
from tokasaurus.model.attention.registry import create_backend
from tokasaurus.model.decoder import Decoder
from tokasaurus.model.kernels.install import with_cpu_kernels
from tokasaurus.model.layers.moe import MixtureOfExperts, choose_experts

Checkpoint = Callable[..., Path]

NUM_TOKENS = 400


def routed_layer(folder: Path, dtype: str, attention_backend: str) -> MixtureOfExperts:
    """The first layer's, with packed weights under the "cpu" backend."""
    model = load(folder, dtype=dtype)
    backend = create_backend(
        attention_backend,
        model.attention_layers,
        page_size=PAGE_SIZE,
        dtype=model.dtype,
        device=CPU,
    )
    decoder = with_cpu_kernels(model, backend)
    assert isinstance(decoder, Decoder)
    layer = decoder.layers[0].mlp
    assert isinstance(layer, MixtureOfExperts)
    return layer


@pytest.mark.parametrize("attention_backend", ["torch", "cpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe"])
@torch.inference_mode()
def test_choices_equal_transformers(
    family: str, dtype: str, attention_backend: str, checkpoint: Checkpoint
) -> None:
    folder = checkpoint(family)
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    layer = routed_layer(folder, dtype, attention_backend)
    x_TD = torch.randn(NUM_TOKENS, 64, generator=torch.Generator().manual_seed(0))
    x_TD = x_TD.to(getattr(torch, dtype))
    logits_TE, their_weights_TK, their_experts_TK = reference.model.layers[0].mlp.gate(x_TD)
    num_choices = layer.spec.num_experts_per_token
    weights_TK, experts_TK = choose_experts(
        layer.router(x_TD), num_choices, normalize=layer.spec.normalize_weights
    )

    # Sums in another order may round a tie of 16-bit logits the other way, and nothing else.
    best_TE = logits_TE.float().sort(descending=True).values
    is_clear_T = ((best_TE[:, :-1] - best_TE[:, 1:])[:, :num_choices] > 0.04).all(1)
    if dtype == "float32":
        is_clear_T[:] = True
    assert is_clear_T.sum() > NUM_TOKENS / 2
    assert torch.equal(experts_TK[is_clear_T], their_experts_TK[is_clear_T])
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    torch.testing.assert_close(
        weights_TK[is_clear_T],
        their_weights_TK[is_clear_T].float(),
        atol=tolerance,
        rtol=tolerance,
    )
