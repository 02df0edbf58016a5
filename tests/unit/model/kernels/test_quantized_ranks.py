"""Tensor-parallel ranks round what they hold; together they are as near as one rank is."""

from pathlib import Path

import pytest
import torch

from tests.checkpoints import make_checkpoint
from tests.models import load
from tests.rank_threads import on_ranks
from tests.unit.model.kernels.small_decoder import backends, logits_of_two_steps
from tokasaurus.model.kernels.install import with_cpu_kernels
from tokasaurus.model.kernels.loader import native_flavour
from tokasaurus.model.parallel import ParallelContext, RankGroup
from tokasaurus.model.quantization.scheme import quantization_scheme

TOLERANCE = {"none": 1e-4, "int8": 0.08, "int8_weight_only": 0.05, "int4_weight_only": 0.5}
"""Of the largest logit; these random models amplify every error."""


@torch.inference_mode()
def logits(folder: Path, quantization: str, tp: RankGroup) -> torch.Tensor:
    scheme = quantization_scheme(quantization, None)
    model = load(folder, parallel=ParallelContext(tp=tp), quantization=scheme)
    backend = backends(model, native_flavour(), torch.float32)[1]
    return logits_of_two_steps(with_cpu_kernels(model, backend, scheme), backend)


@pytest.mark.parametrize("family", ["llama_biases", "llama_tied"])
def test_ranks_agree_and_stay_near(family: str, tmp_path: Path) -> None:
    folder = make_checkpoint(family, tmp_path)
    expected = on_ranks(1, lambda tp: logits(folder, "none", tp))[0]
    for quantization, tolerance in TOLERANCE.items():
        first, second = on_ranks(2, lambda tp, name=quantization: logits(folder, name, tp))
        assert torch.equal(first, second)
        error = (first - expected).abs().max()
        assert error < tolerance * expected.abs().max(), quantization
