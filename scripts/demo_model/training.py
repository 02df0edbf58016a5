"""The training loop: a small Llama on packed rows, Muon and AdamW, warm-up and linear decay."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from demo_model.muon import Muon
from demo_model.packing import RowSource


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """Everything that decides one stage besides the data."""

    name: str
    num_steps: int
    chat_rows_of_eight: int = 4
    tokens_per_step: int = 4096
    row_length: int = 512
    long_row_length: int = 2048
    long_share: float = 0.12
    warmup_steps: int = 40
    decay_share: float = 0.6
    matrix_lr: float = 0.02
    vector_lr: float = 4e-3
    seed: int = 20240607

    def learning_rate_factor(self, step: int) -> float:
        """Linear warm-up, a plateau, then a linear fall to zero."""
        falling = (self.num_steps - step) / max(1.0, self.num_steps * self.decay_share)
        return min(1.0, (step + 1) / self.warmup_steps, falling)

    def num_tokens(self, chat: bool) -> int:
        """About how many chat or Python tokens the stage sees."""
        rows = self.chat_rows_of_eight if chat else 8 - self.chat_rows_of_eight
        return self.num_steps * self.tokens_per_step * rows // 8 + self.long_row_length

    def length_at(self, step: int) -> int:
        """Row length of a step: the last share of the run teaches long positions."""
        long = step >= self.num_steps * (1 - self.long_share)
        return self.long_row_length if long else self.row_length


@dataclass(slots=True)
class TrainingRecord:
    """What the model card reports about the run."""

    wall_seconds: float = 0.0
    num_tokens: int = 0
    python_loss: float = 0.0
    chat_loss: float = 0.0
    history: list[tuple[int, float, float]] = field(default_factory=list)


def build_model(config: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """A freshly initialised fp32 model."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
    return model.train()


def _optimizers(model: LlamaForCausalLM, plan: TrainingPlan) -> list[torch.optim.Optimizer]:
    inner = list(model.model.layers.parameters())
    matrices = [parameter for parameter in inner if parameter.ndim == 2]
    rest = [parameter for parameter in inner if parameter.ndim != 2]
    rest += [model.model.norm.weight, model.model.embed_tokens.weight]
    adam = torch.optim.AdamW(rest, lr=plan.vector_lr, betas=(0.9, 0.95), weight_decay=0.0)
    return [Muon(matrices, lr=plan.matrix_lr), adam]


def train(
    model: LlamaForCausalLM,
    python_rows: RowSource,
    chat_rows: RowSource,
    plan: TrainingPlan,
    compile_model: bool,
    on_step: Callable[[int, TrainingRecord], None],
) -> TrainingRecord:
    """Runs the plan in place on rows of Python and rows of chat in every step."""

    def row_losses(ids_BT: torch.Tensor) -> torch.Tensor:
        hidden = model.model(input_ids=ids_BT[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden).flatten(0, 1)
        return functional.cross_entropy(logits, ids_BT[:, 1:].flatten(), reduction="none")

    compute = torch.compile(row_losses, dynamic=False) if compile_model else row_losses
    optimizers = _optimizers(model, plan)
    base_lrs = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    record = TrainingRecord()
    started = time.monotonic()
    for step in range(plan.num_steps):
        length = plan.length_at(step)
        num_rows = plan.tokens_per_step // length
        num_chat_rows = num_rows * plan.chat_rows_of_eight // 8
        python_ids, python_weights = python_rows.rows(num_rows - num_chat_rows, length)
        chat_ids, chat_weights = chat_rows.rows(num_chat_rows, length)
        ids = torch.from_numpy(np.concatenate([python_ids, chat_ids]))
        weights = torch.from_numpy(np.concatenate([python_weights, chat_weights])[:, 1:].copy())
        losses = compute(ids).view(weights.shape)
        weighted = losses * weights
        (weighted.sum() / weights.sum()).backward()
        for optimizer, base_lr in zip(optimizers, base_lrs, strict=True):
            optimizer.param_groups[0]["lr"] = base_lr * plan.learning_rate_factor(step)
            optimizer.step()
            optimizer.zero_grad()
        _note(record, weighted.detach(), weights, num_rows - num_chat_rows, step)
        record.num_tokens += ids.numel() - len(ids)
        record.wall_seconds = time.monotonic() - started
        on_step(step, record)
    return record


def _note(
    record: TrainingRecord,
    weighted: torch.Tensor,
    weights: torch.Tensor,
    num_python_rows: int,
    step: int,
) -> None:
    """Keeps running means (over about 50 steps) of the two losses."""
    python, chat = slice(None, num_python_rows), slice(num_python_rows, None)
    answers = weights[chat] >= 1.0
    python_loss = float(weighted[python].sum() / weights[python].sum())
    chat_loss = float(weighted[chat][answers].mean())
    keep = 0.0 if step == 0 else 0.98
    record.python_loss = keep * record.python_loss + (1 - keep) * python_loss
    record.chat_loss = keep * record.chat_loss + (1 - keep) * chat_loss
    if (step + 1) % 100 == 0:
        record.history.append((step + 1, record.python_loss, record.chat_loss))
