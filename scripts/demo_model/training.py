"""The training loop: a small Llama on packed rows, AdamW, warm-up and linear decay."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

from demo_model.packing import RowSource

MAX_GRADIENT_NORM = 1.0
KEY_GAIN, QUERY_NOISE, OUTPUT_GAIN = 0.8, 0.02, 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """Everything that decides the run besides the data."""

    num_steps: int
    num_chat_rows: int
    chat_row_length: int
    num_python_rows: int
    python_row_length: int
    warmup_steps: int
    decay_steps: int
    learning_rate: float
    betas: tuple[float, float]
    seed: int

    @property
    def chat_tokens_per_step(self) -> int:
        return self.num_chat_rows * self.chat_row_length

    @property
    def python_tokens_per_step(self) -> int:
        return self.num_python_rows * self.python_row_length

    def learning_rate_factor(self, step: int) -> float:
        """Linear warm-up, a plateau, then a linear fall to zero."""
        falling = (self.num_steps - step) / self.decay_steps
        return min(1.0, (step + 1) / self.warmup_steps, falling)


@dataclass(slots=True)
class TrainingRecord:
    """What the model card reports about the run."""

    wall_seconds: float = 0.0
    num_tokens: int = 0
    python_loss: float = 0.0
    chat_loss: float = 0.0
    history: list[tuple[int, float, float]] = field(default_factory=list)


def _start_attention_alike(attention: LlamaAttention) -> None:
    """Lets a layer begin as a soft lookup: like attends to like and hands its own content on.

    Queries equal their group's keys and outputs undo the values, up to a scale, so that copying
    need not be found from noise (mimetic initialisation, Trockman and Kolter, 2023).
    """
    q, k, v, o = (
        getattr(attention, name).weight for name in ("q_proj", "k_proj", "v_proj", "o_proj")
    )
    head_size, hidden = attention.head_dim, q.shape[1]

    def for_every_head(weight: torch.Tensor) -> torch.Tensor:
        grouped = weight.view(-1, 1, head_size, hidden)
        return grouped.expand(-1, q.shape[0] // k.shape[0], -1, -1).reshape(-1, hidden)

    torch.nn.init.orthogonal_(k, gain=KEY_GAIN)
    q.copy_(for_every_head(k) + QUERY_NOISE * torch.randn_like(q))
    torch.nn.init.orthogonal_(v)
    o.copy_(OUTPUT_GAIN * for_every_head(v).T)


@torch.no_grad()
def build_model(config: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """A freshly initialised fp32 model whose feed-forward layers add nothing at first."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    unit = config.hidden_size**-0.5
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=unit)
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.zero_()
        _start_attention_alike(layer.self_attn)
        torch.nn.init.normal_(layer.mlp.gate_proj.weight, std=unit)
        torch.nn.init.normal_(layer.mlp.up_proj.weight, std=unit)
    return model.train()


def train(
    model: LlamaForCausalLM,
    python_rows: RowSource,
    chat_rows: RowSource,
    plan: TrainingPlan,
    compile_model: bool,
    on_step: Callable[[int, TrainingRecord], None],
) -> TrainingRecord:
    """Runs the plan in place on rows of Python and rows of chat in every step."""

    def losses(ids: np.ndarray, counted: np.ndarray) -> torch.Tensor:
        ids_BT, chosen_BT = torch.from_numpy(ids), torch.from_numpy(counted)[:, 1:]
        hidden = body(input_ids=ids_BT[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[chosen_BT])
        return functional.cross_entropy(logits, ids_BT[:, 1:][chosen_BT], reduction="none")

    body = torch.compile(model.model, dynamic=False) if compile_model else model.model
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=plan.learning_rate, betas=plan.betas, weight_decay=0.0, fused=True
    )
    record = TrainingRecord()
    started = time.monotonic()
    for step in range(plan.num_steps):
        chat_losses = losses(*chat_rows.rows(plan.num_chat_rows))
        python_losses = losses(*python_rows.rows(plan.num_python_rows))
        (chat_losses.mean() + python_losses.mean()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * plan.learning_rate_factor(step)
        optimizer.step()
        optimizer.zero_grad()
        _note(record, chat_losses.mean().item(), python_losses.mean().item(), step)
        record.num_tokens += plan.chat_tokens_per_step + plan.python_tokens_per_step
        record.wall_seconds = time.monotonic() - started
        on_step(step, record)
    return record


def _note(record: TrainingRecord, chat_loss: float, python_loss: float, step: int) -> None:
    """Keeps running means (over about 20 steps) of the two losses."""
    keep = 0.0 if step == 0 else 0.95
    record.chat_loss = keep * record.chat_loss + (1 - keep) * chat_loss
    record.python_loss = keep * record.python_loss + (1 - keep) * python_loss
    if (step + 1) % 100 == 0:
        record.history.append((step + 1, record.python_loss, record.chat_loss))
