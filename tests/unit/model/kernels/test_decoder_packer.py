"""Layers packed while the checkpoint is read compute as layers that are packed afterwards."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.checkpoints import make_checkpoint
from tests.models import load
from tests.unit.model.kernels.small_decoder import (
    EXPERTS,
    backends,
    logits_of_two_steps,
    make_decoder,
)
from tokasaurus.model import registry
from tokasaurus.model.decoder import Decoder
from tokasaurus.model.kernels.decoder_packer import DecoderPacker, packing_while_loading
from tokasaurus.model.kernels.install import with_cpu_kernels
from tokasaurus.model.kernels.loader import load_kernels, native_flavour
from tokasaurus.model.layers.linear import Linear
from tokasaurus.model.quantization.scheme import (
    NO_QUANTIZATION,
    QuantizationScheme,
    quantization_scheme,
)

INT8 = quantization_scheme("int8", None)


def load_packed(folder: Path, quantized: bool, dtype: str = "bfloat16") -> Decoder:
    """Packed while it is loaded, if it is to be quantised."""
    model = load(folder, dtype=dtype, quantization=INT8 if quantized else NO_QUANTIZATION)
    assert isinstance(model, Decoder)
    return model


def num_plain_elements(model: Decoder) -> int:
    return sum(p.numel() for p in model.parameters() if p.dim() > 1)


@pytest.mark.parametrize("family", ["llama_tied", "llama_biases", "mixtral", "falcon_7b"])
@torch.inference_mode()
def test_logits_are_those_of_packing_afterwards(family: str, tmp_path: Path) -> None:
    folder = make_checkpoint(family, tmp_path)
    results = []
    for quantized in (False, True):
        model = load_packed(folder, quantized)
        backend = backends(model, native_flavour(), model.dtype)[1]
        results.append(logits_of_two_steps(with_cpu_kernels(model, backend, INT8), backend))
    assert torch.equal(*results)


@pytest.mark.parametrize("family", ["llama", "llama_tied"])
def test_layers_are_packed_one_by_one(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that what is not packed yet is a layer, not a model."""
    packed: list[int] = []

    def watched(model: Decoder, scheme: QuantizationScheme) -> Callable[[nn.Module], None]:
        pack = packing_while_loading(model, scheme)

        def finished(layer: nn.Module) -> None:
            before = num_plain_elements(model)
            pack(layer)
            packed.append(before - num_plain_elements(model))

        return finished

    monkeypatch.setattr(registry, "packing_while_loading", watched)
    model = load_packed(make_checkpoint(family, tmp_path), True)
    linears = [module for module in model.modules() if isinstance(module, Linear)]
    assert sum(1 for elements in packed if elements) == len(linears)
    kept = 0 if family == "llama_tied" else model.embedding.weight.numel()
    assert num_plain_elements(model) == kept


def test_half_precision_is_left_for_its_refusal(tmp_path: Path) -> None:
    model = load_packed(make_checkpoint("llama", tmp_path), True, dtype="float16")
    assert num_plain_elements(model) > 0


@pytest.mark.parametrize("fuses", [False, True])
def test_packing_twice_changes_nothing(fuses: bool) -> None:
    model = make_decoder(torch.bfloat16, tie_embeddings=True, moe=None if fuses else EXPERTS)
    packer = DecoderPacker(model, load_kernels(), INT8, fuses=fuses)
    packer.pack_all()
    kernels = [getattr(module, "kernel", None) for module in model.modules()]
    packer.pack_all()
    assert kernels == [getattr(module, "kernel", None) for module in model.modules()]
    assert num_plain_elements(model) == 0
