"""Whole models with quantised weights: every way of running them agrees, or says why it can't."""

from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tests.models import moe_spec
from tests.unit.model.kernels.small_decoder import (
    FUSED,
    PACKED,
    SPEC,
    backends,
    logits_of_two_steps,
    make_decoder,
)
from tokasaurus.errors import ConfigError
from tokasaurus.model.kernels import install
from tokasaurus.model.kernels.fused_decoder import FusedDecoder
from tokasaurus.model.kernels.install import with_cpu_kernels
from tokasaurus.model.kernels.loader import native_flavour
from tokasaurus.model.quantization.scheme import (
    NO_QUANTIZATION,
    QuantizationScheme,
    quantization_scheme,
)
from tokasaurus.model.transformers_path.model import TransformersModel

FLAVOUR = native_flavour()
SCHEMES = [
    quantization_scheme("int8", None),
    quantization_scheme("int8_weight_only", None),
    quantization_scheme("int4_weight_only", 32),
]
TOLERANCE = {"int8": 0.08, "int8_weight_only": 0.05, "int4_weight_only": 0.5}
"""Of the largest logit; these random models amplify every error."""


def scheme_name(scheme: QuantizationScheme) -> str:
    return scheme.name


@pytest.mark.parametrize("scheme", SCHEMES, ids=scheme_name)
@pytest.mark.parametrize("features", ["tied", "biases", "gelu", "parallel"])
@torch.inference_mode()
def test_logits_stay_near(features: str, scheme: QuantizationScheme) -> None:
    model = make_decoder(torch.float32, **(FUSED | PACKED)[features])
    torch_backend, cpu_backend = backends(model, FLAVOUR, torch.float32)
    expected = logits_of_two_steps(model, torch_backend)
    fast = with_cpu_kernels(model, cpu_backend, scheme)
    assert isinstance(fast, FusedDecoder) == (features in FUSED)
    error = (logits_of_two_steps(fast, cpu_backend) - expected).abs().max()
    assert 0 < error < TOLERANCE[scheme.name] * expected.abs().max()


@pytest.mark.parametrize("scheme", SCHEMES, ids=scheme_name)
@torch.inference_mode()
def test_fused_and_packed_layers_agree(
    scheme: QuantizationScheme, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for fuses in (True, False):
        monkeypatch.setattr(install, "can_fuse", lambda decoder, fuses=fuses: fuses)
        model = make_decoder(torch.float32, qk_norm=True, tie_embeddings=True)
        backend = backends(model, FLAVOUR, torch.float32)[1]
        results.append(logits_of_two_steps(with_cpu_kernels(model, backend, scheme), backend))
    fused, packed = results
    # The last bit of a norm may move an activation by one level.
    tolerance = 0.02 if scheme.name == "int8" else 1e-4
    assert (fused - packed).abs().max() < tolerance * packed.abs().max()


@pytest.mark.parametrize("scheme", SCHEMES, ids=scheme_name)
def test_plain_weights_are_dropped(scheme: QuantizationScheme) -> None:
    model = make_decoder(torch.bfloat16, tie_embeddings=True)
    backend = backends(model, FLAVOUR, torch.bfloat16)[1]
    with_cpu_kernels(model, backend, scheme)
    assert sum(p.numel() for p in model.parameters() if p.dim() > 1) == 0


@torch.inference_mode()
def test_experts_are_quantised_and_their_router_is_not() -> None:
    moe = moe_spec(4, 2, layers=frozenset({0, 1}))
    model = make_decoder(torch.float32, moe=moe)
    torch_backend, cpu_backend = backends(model, FLAVOUR, torch.float32)
    expected = logits_of_two_steps(model, torch_backend)
    router = model.layers[0].mlp.router  # type: ignore[union-attr]
    x = torch.randn(3, SPEC.hidden_size)
    choices = router(x)  # type: ignore[operator]
    fast = with_cpu_kernels(model, cpu_backend, SCHEMES[1])
    assert model.layers[0].mlp.experts.down.weight.numel() == 0  # type: ignore[union-attr]
    torch.testing.assert_close(router(x), choices, atol=1e-5, rtol=1e-5)  # type: ignore[operator]
    error = (logits_of_two_steps(fast, cpu_backend) - expected).abs().max()
    assert 0 < error < 0.1 * expected.abs().max()


@torch.inference_mode()
def test_transformers_models_compute_in_few_bits() -> None:
    config = LlamaConfig(
        vocab_size=SPEC.vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    model = TransformersModel(LlamaForCausalLM(config).eval().requires_grad_(False), 64)
    torch_backend, cpu_backend = backends(model, FLAVOUR, torch.float32)
    expected = logits_of_two_steps(model, torch_backend)
    actual = logits_of_two_steps(with_cpu_kernels(model, cpu_backend, SCHEMES[0]), cpu_backend)
    assert 0 < (actual - expected).abs().max() < 0.1 * expected.abs().max()


def test_other_layers_of_transformers_are_refused_by_name() -> None:
    config = GPT2Config(vocab_size=97, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    model = TransformersModel(GPT2LMHeadModel(config).eval().requires_grad_(False), 64)
    backend = backends(model, FLAVOUR, torch.float32)[1]
    with pytest.raises(ConfigError, match=r"quantization=int8 .*GPT2LMHeadModel.*c_attn\.weight"):
        with_cpu_kernels(model, backend, SCHEMES[0])


def test_other_backends_are_refused() -> None:
    model = make_decoder(torch.float32)
    backend = backends(model, FLAVOUR, torch.float32)[0]
    with pytest.raises(ConfigError, match=r"int8 needs the CPU kernels.*runs on torch"):
        with_cpu_kernels(model, backend, SCHEMES[0])


def test_other_places_are_refused() -> None:
    with pytest.raises(ConfigError, match="not on cuda; set device=cpu"):
        SCHEMES[0].check_place("cuda", True)
    with pytest.raises(ConfigError, match="set cpu_kernels=T"):
        SCHEMES[0].check_place("cpu", False)
    NO_QUANTIZATION.check_place("cuda", False)


def test_a_head_has_eight_bits() -> None:
    assert SCHEMES[2].head == SCHEMES[1].head
    assert (
        replace(SCHEMES[2].layers, group_size=64)
        == quantization_scheme("int4_weight_only", 64).layers
    )
