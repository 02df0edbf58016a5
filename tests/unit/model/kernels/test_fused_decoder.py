"""The fused decoder equals the shared decoder over the torch backend; other shapes are packed."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.kernel_flavours import FLAVOURS
from tests.unit.model.kernels.small_decoder import (
    EXPERTS,
    FUSED,
    PACKED,
    SPEC,
    backends,
    logits_of_two_steps,
    make_decoder,
)
from tokasaurus.model.config import MoESpec
from tokasaurus.model.kernels.decode_step import DecodeStep, SlotColumns
from tokasaurus.model.kernels.fused_decoder import FusedDecoder
from tokasaurus.model.kernels.install import with_cpu_kernels
from tokasaurus.model.kernels.linear import PackedLinear
from tokasaurus.model.kernels.loader import native_flavour
from tokasaurus.model.quantization.scheme import quantization_scheme
from tokasaurus.model.transformers_path.model import TransformersModel


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("features", [*FUSED, *PACKED])
@torch.inference_mode()
def test_equals_the_shared_decoder(features: str, flavour: str) -> None:
    dtype = torch.float32
    model = make_decoder(dtype, **(FUSED | PACKED)[features])
    torch_backend, cpu_backend = backends(model, flavour, dtype)
    expected = logits_of_two_steps(model, torch_backend)
    fast = with_cpu_kernels(model, cpu_backend)
    assert isinstance(fast, FusedDecoder) == (features in FUSED)
    actual = logits_of_two_steps(fast, cpu_backend)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("flavour", FLAVOURS)
@torch.inference_mode()
def test_wide_layers_of_two_rows(flavour: str) -> None:
    """Long streams of panels by several threads, and sums that are added to where they lie."""
    model = make_decoder(torch.float32, hidden_size=1536, num_layers=1)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "embedding" not in name:
            parameter.data /= 8
    reference, backend = backends(model, flavour, torch.float32)
    expected = logits_of_two_steps(model, reference)
    fast = with_cpu_kernels(model, backend)
    assert isinstance(fast, FusedDecoder)
    before = torch.get_num_threads()
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            actual = logits_of_two_steps(fast, backend)
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(
    ("features", "quantization"),
    [
        *((features, "none") for features in FUSED),
        ("plain", "int8"),
        ("tied", "int8"),
        ("tied", "int4_weight_only"),
    ],
)
@torch.inference_mode()
def test_a_decode_step_in_one_call(features: str, quantization: str, flavour: str) -> None:
    """The second of the two steps once more: it writes what the cache holds already."""
    model = make_decoder(torch.bfloat16, **FUSED[features])
    backend = backends(model, flavour, torch.bfloat16)[1]
    fast = with_cpu_kernels(model, backend, quantization_scheme(quantization, 32))
    assert isinstance(fast, FusedDecoder)
    logits = logits_of_two_steps(fast, backend)[-2:]
    columns = SlotColumns(
        block_tables=np.array([[3, 0], [0, 0], [4, 1]], np.int32),
        num_blocks=np.array([1, 0, 2], np.int32),
        kv_lens=np.array([1, 50, 13]),
        last_tokens=np.array([7, 50, 13 * 7]) % SPEC.vocab_size,
        temperature=np.zeros(3, np.float32),
        top_p=np.ones(3, np.float32),
        min_p=np.zeros(3, np.float32),
        top_k=np.zeros(3, np.int32),
        seeds=np.zeros(3, np.int64),
    )
    step = DecodeStep(fast, backend, max_logits_rows=2)
    step.bind(columns)
    step.set_rows(np.array([2, 0]), np.empty((0, 3), np.int32))
    (tokens,) = step.run().tolist()
    assert tokens == logits.argmax(1).tolist()
    assert columns.kv_lens.tolist() == [2, 50, 14]
    assert columns.last_tokens.tolist() == [tokens[1], 50, tokens[0]]


@pytest.mark.parametrize("flavour", FLAVOURS)
@torch.inference_mode()
def test_bfloat16_is_near_float32(flavour: str) -> None:
    model = make_decoder(torch.bfloat16, qk_norm=True, tie_embeddings=True)
    wide = make_decoder(torch.float32, qk_norm=True, tie_embeddings=True)
    for parameter, source in zip(wide.parameters(), model.parameters(), strict=True):
        parameter.data.copy_(source)
    expected = logits_of_two_steps(wide, backends(wide, flavour, torch.float32)[0])
    backend = backends(model, flavour, torch.bfloat16)[1]
    actual = logits_of_two_steps(with_cpu_kernels(model, backend), backend)
    assert (actual - expected).abs().max() < 0.03 * expected.abs().max()


@pytest.mark.parametrize("moe", [None, EXPERTS])
def test_weights_are_held_once(moe: MoESpec | None) -> None:
    model = make_decoder(torch.bfloat16, tie_embeddings=True, moe=moe)
    backend = backends(model, native_flavour(), torch.bfloat16)[1]
    with_cpu_kernels(model, backend)
    assert model.embedding.weight.numel() == 0
    assert sum(p.numel() for p in model.parameters() if p.dim() > 1) == 0


@torch.inference_mode()
def test_transformers_models_compute_with_packed_layers() -> None:
    config = LlamaConfig(
        vocab_size=SPEC.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model = TransformersModel(LlamaForCausalLM(config).eval().requires_grad_(False), 64)
    torch_backend, cpu_backend = backends(model, native_flavour(), torch.float32)
    expected = logits_of_two_steps(model, torch_backend)
    packed = with_cpu_kernels(model, cpu_backend)
    layers = [layer for layer, _ in model.linear_layers()]
    assert len(layers) == 2 * 7 + 1
    assert all(isinstance(layer.forward, PackedLinear) for layer in layers)
    assert all(layer.weight.numel() == 0 for layer in layers), "a weight is held twice"
    actual = logits_of_two_steps(packed, cpu_backend)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_norms_of_different_epsilons_are_not_fused() -> None:
    model = make_decoder(torch.float32)
    model.layers[1].mlp_norm.eps *= 2
    reference, backend = backends(model, native_flavour(), torch.float32)
    expected = logits_of_two_steps(model, reference)
    packed = with_cpu_kernels(model, backend)
    assert not isinstance(packed, FusedDecoder)
    torch.testing.assert_close(logits_of_two_steps(packed, backend), expected)


def test_other_backends_leave_the_model_alone() -> None:
    model = make_decoder(torch.float32)
    backend = backends(model, native_flavour(), torch.float32)[0]
    assert with_cpu_kernels(model, backend) is model
