"""Mixtures of experts against a loop over tokens, alone, in batches and divided among ranks."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from tests.models import decoder_spec, moe_spec
from tokasaurus.errors import ConfigError
from tokasaurus.model.config import TensorSpec
from tokasaurus.model.decoder import GatedMLP
from tokasaurus.model.layers.moe import (
    Dispatch,
    MixtureOfExperts,
    choose_experts,
    held_experts,
)
from tokasaurus.model.parallel import ParallelContext, RankGroup

D = 16


def make(
    num_experts: int, num_choices: int, *, normalize: bool = True, shared: bool = False
) -> MixtureOfExperts:
    """With random weights."""
    spec = decoder_spec(
        hidden_size=D,
        num_layers=1,
        moe=moe_spec(num_experts, num_choices, normalize_weights=normalize),
    )
    tensors = TensorSpec(dtype=torch.float32, device=torch.device("cpu"))
    layer = MixtureOfExperts(spec, tensors, GatedMLP(spec, tensors) if shared else None)
    for parameter in layer.parameters():
        parameter.normal_(0, 0.5)
    return layer


def mlp(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down)


def token_by_token(layer: MixtureOfExperts, x_TD: torch.Tensor) -> torch.Tensor:
    """As the papers say it, in float64; of experts that all but tie, those that float32 chose."""
    num_choices = layer.spec.num_experts_per_token
    _, experts_TK = choose_experts(layer.router(x_TD), num_choices, normalize=False)
    layer = layer.double()
    rows = []
    for x_D, chosen in zip(x_TD.double(), experts_TK, strict=True):
        probabilities = torch.softmax(layer.router.weight @ x_D, dim=0)
        likeliest = probabilities.sort(descending=True).values[:num_choices]
        torch.testing.assert_close(probabilities[chosen], likeliest, atol=1e-6, rtol=1e-5)
        scale = probabilities[chosen].sum() if layer.spec.normalize_weights else 1.0
        experts = layer.experts
        row = sum(
            probabilities[e] / scale * mlp(x_D, experts.gate_up.weight[e], experts.down.weight[e])
            for e in chosen.tolist()
        )
        if layer.has_shared:
            shared = mlp(x_D, layer.shared.gate_up.weight, layer.shared.down.weight)
            row = row + torch.sigmoid(layer.shared_gate.weight @ x_D) * shared
        rows.append(row)
    return torch.stack(rows)


@settings(max_examples=50)
@given(
    num_tokens=st.integers(1, 40),
    num_experts=st.integers(1, 12),
    num_choices=st.integers(1, 12),
    normalize=st.booleans(),
    shared=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_equals_a_loop_over_tokens(
    num_tokens: int, num_experts: int, num_choices: int, normalize: bool, shared: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = make(num_experts, min(num_choices, num_experts), normalize=normalize, shared=shared)
    x_TD = torch.randn(num_tokens, D)
    y_TD = layer(x_TD)
    assert y_TD.dtype == torch.float32
    torch.testing.assert_close(y_TD.double(), token_by_token(layer, x_TD), atol=1e-4, rtol=1e-4)


@settings(max_examples=60)
@given(
    num_tokens=st.integers(1, 30),
    num_experts=st.integers(1, 9),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_dispatch_sorts_by_expert_and_brings_every_choice_back(
    num_tokens: int, num_experts: int, seed: int, data: st.DataObject
) -> None:
    torch.manual_seed(seed)
    first = data.draw(st.integers(0, num_experts - 1))
    held = range(first, data.draw(st.integers(first + 1, num_experts)))
    num_choices = data.draw(st.integers(1, num_experts))
    experts_TK = torch.rand(num_tokens, num_experts).topk(num_choices).indices
    dispatch = Dispatch.by_expert(experts_TK, held, num_experts)
    sorted_R = experts_TK.flatten()[dispatch.rows_TK.flatten().argsort()]
    start = 0
    for expert, end in zip(held, dispatch.ends_E.tolist(), strict=True):
        assert (sorted_R[start:end] == expert).all()
        assert (dispatch.tokens_R[start:end].diff() > 0).all(), "a token twice or out of order"
        start = end
    assert not torch.isin(sorted_R[start:], torch.tensor(list(held))).any()
    tokens_TK = torch.arange(num_tokens)[:, None].expand_as(experts_TK)
    assert torch.equal(dispatch.tokens_R[dispatch.rows_TK], tokens_TK)

    y_RD = torch.randn(len(sorted_R), 4)
    y_RD[start:] = torch.nan
    weights_TK = torch.rand(num_tokens, num_choices)
    outputs_TKD = y_RD[dispatch.rows_TK].nan_to_num(0.0)
    torch.testing.assert_close(
        dispatch.combine(y_RD, weights_TK), (outputs_TKD * weights_TK[..., None]).sum(1)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_summed_in_more(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    experts_TK = torch.rand(40, 8).argsort()
    y_RD = torch.randn(320, 64).to(dtype)
    weights_TK = torch.softmax(torch.randn(40, 8), -1)
    dispatch = Dispatch.by_expert(experts_TK, range(8), 8)
    total_TD = dispatch.combine(y_RD, weights_TK)
    terms_TKD = y_RD[dispatch.rows_TK].double() * weights_TK.to(dtype).double()[..., None]
    assert total_TD.dtype == dtype
    assert (total_TD == terms_TKD.sum(1).to(dtype)).double().mean() > 0.99


@settings(max_examples=30)
@given(num_tokens=st.integers(2, 60), num_choices=st.integers(1, 8), seed=st.integers(0, 2**31))
def test_a_token_gathers_the_same_bits_whoever_else_is_there(
    num_tokens: int, num_choices: int, seed: int
) -> None:
    """Experts that treat each row alike show what routing, sorting and adding do."""
    torch.manual_seed(seed)
    logits_TE, x_TD = torch.randn(num_tokens, 8), torch.randn(num_tokens, D)
    scale_ED = torch.randn(8, D)

    def run(tokens: slice) -> torch.Tensor:
        weights_TK, experts_TK = choose_experts(logits_TE[tokens], num_choices, normalize=True)
        dispatch = Dispatch.by_expert(experts_TK, range(8), 8)
        counts = dispatch.ends_E.diff(prepend=torch.zeros(1, dtype=torch.int32))
        y_RD = x_TD[tokens][dispatch.tokens_R] * scale_ED.repeat_interleave(counts, 0)
        return dispatch.combine(y_RD, weights_TK)

    together = run(slice(0, num_tokens))
    for token in range(0, num_tokens, 7):
        assert torch.equal(run(slice(token, token + 1))[0], together[token])


@pytest.mark.parametrize("num_ranks", [2, 3, 5])
def test_ranks_add_up(num_ranks: int) -> None:
    torch.manual_seed(0)
    whole = make(5, 3)
    x_TD = torch.randn(20, D)
    total_TD = torch.zeros_like(x_TD)
    for rank in range(num_ranks):
        part = make(5, 3)
        part.router.weight.copy_(whole.router.weight)
        part.held = held_experts(5, ParallelContext(tp=RankGroup(rank, num_ranks)))
        for ours, theirs in (
            (part.experts.gate_up, whole.experts.gate_up),
            (part.experts.down, whole.experts.down),
        ):
            ours.weight.data = theirs.weight[part.held.start : part.held.stop]
        total_TD += part(x_TD)
    torch.testing.assert_close(total_TD, whole(x_TD), atol=1e-4, rtol=1e-4)


def test_every_expert_has_one_rank() -> None:
    for num_experts in range(1, 20):
        for size in range(1, num_experts + 1):
            contexts = [ParallelContext(tp=RankGroup(rank, size)) for rank in range(size)]
            held = [held_experts(num_experts, context) for context in contexts]
            assert [expert for share in held for expert in share] == list(range(num_experts))
            assert {len(share) for share in held} <= {num_experts // size, -(-num_experts // size)}
    with pytest.raises(ConfigError, match="4 experts can't be divided by tp_size=5"):
        held_experts(4, ParallelContext(tp=RankGroup(0, 5)))


def test_one_graph_serves_all_batches() -> None:
    torch.compiler.reset()  # all tests share a process, and its limit of graphs
    torch.manual_seed(0)
    layer = make(6, 2, shared=True)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    for num_tokens in (3, 8, 50, 2):
        x_TD = torch.randn(num_tokens, D)
        with torch.inference_mode():
            torch.testing.assert_close(compiled(x_TD), layer(x_TD))
    assert counter.frame_count == 1
