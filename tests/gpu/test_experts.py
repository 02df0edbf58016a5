"""Mixtures of experts on a GPU: products against float64, no wait for the host, graphs as eager."""

import pytest
import torch

from tests.models import decoder_spec, moe_spec
from tokasaurus.model.config import TensorSpec
from tokasaurus.model.layers.grouped_linear import grouped_linear, has_grouped_mm
from tokasaurus.model.layers.moe import MixtureOfExperts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

D = 256


def make_layer(dtype: torch.dtype) -> MixtureOfExperts:
    """16 experts, 4 per token, with random weights."""
    spec = decoder_spec(hidden_size=D, num_layers=1, moe=moe_spec(16, 4, intermediate_size=128))
    layer = MixtureOfExperts(spec, TensorSpec(dtype=dtype, device=torch.device("cuda")), None)
    torch.manual_seed(0)
    for parameter in layer.parameters():
        parameter.normal_(0, D**-0.5)
    return layer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    "counts", [[3, 0, 1, 0], [0, 0, 0, 1], [700, 1, 0, 300], [128, 128, 128, 128]]
)
def test_products_equal_float64(dtype: torch.dtype, counts: list[int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(sum(counts) + 5, D).to("cuda", dtype)
    weight = torch.randn(len(counts), 96, D).div(D**0.5).to("cuda", dtype)
    ends = torch.tensor(counts, device="cuda").cumsum(0).int()
    y = grouped_linear(x, weight, ends)[: sum(counts)]
    pieces = x[: sum(counts)].double().split(counts)
    expected = torch.cat([p @ w.double().T for p, w in zip(pieces, weight, strict=True)])
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(y.double(), expected, atol=tolerance, rtol=tolerance)


@torch.inference_mode()
def test_a_layer_never_waits_for_the_host() -> None:
    layer = make_layer(torch.bfloat16)
    if not has_grouped_mm(layer.experts.gate_up.weight):
        pytest.skip("this GPU's grouped product reads the ends of groups on the host")
    x_TD = torch.randn(64, D, device="cuda", dtype=torch.bfloat16)
    layer(x_TD)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x_TD)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("num_tokens", [1, 48])
@torch.inference_mode()
def test_a_graph_computes_what_eager_does(dtype: torch.dtype, num_tokens: int) -> None:
    layer = make_layer(dtype)
    x_TD = torch.zeros(num_tokens, D, device="cuda", dtype=dtype)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        layer(x_TD)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y_TD = layer(x_TD)
    for seed in range(3):
        torch.manual_seed(seed)
        x_TD.normal_()
        graph.replay()
        tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-4
        torch.testing.assert_close(y_TD, layer(x_TD), atol=tolerance, rtol=tolerance)
