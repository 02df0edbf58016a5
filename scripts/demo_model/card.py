"""The model card: how the demo model was made, for what, and what it scored."""

import os
import platform
from dataclasses import dataclass

import torch
import transformers
from transformers import LlamaConfig

from demo_model.training import TrainingPlan, TrainingRecord


@dataclass(frozen=True, slots=True)
class StageFacts:
    """A finished stage: its plan, what happened, and the tokens it had to draw from."""

    plan: TrainingPlan
    record: TrainingRecord
    num_python_tokens: int
    num_chat_tokens: int


_CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# Tokasaurus demo model

A {million:.1f} million parameter Llama that travels inside the package, so that the engine can be
installed, tried and tested on a laptop without a download.

## For what
- It completes Python in the manner of the standard library: `def`, `class`, `return`, `self`,
  indentation, docstrings. The code looks right; nobody promises that it works.
- In chat it answers the kinds of question it was trained on: sums with numbers up to 99 (plus and
  minus) and products up to 12 x 12, spelling, counting letters and reversing a word, counting
  up and down, comparing numbers, even or odd, what comes after or before, name/age/city/job
  sentences as JSON, a dozen tiny Python functions, greetings and who it is. It copes with a system
  prompt and with several exchanges.
- It is **not** for anything else. It knows no facts, follows no other instruction, and its
  answers are not checked. Outside its kinds of question it usually says that it is too small.

## Architecture
| | |
|---|---|
| family | `LlamaForCausalLM`, tied embeddings, bfloat16 weights |
| parameters | {parameters:,} |
| layers, hidden, intermediate | {config.num_hidden_layers}, {config.hidden_size}, \
{config.intermediate_size} |
| heads, key/value heads, head size | {config.num_attention_heads}, \
{config.num_key_value_heads}, {config.head_dim} |
| positions | {config.max_position_embeddings} |
| vocabulary | {config.vocab_size}, byte-level BPE, single digits, \
`<|endoftext|>` `<|im_start|>` `<|im_end|>` |

## How it was made
`python scripts/train_demo_model.py --out DIR` from the project's root, nothing downloaded:
the text is the standard library's own source ({num_files} files; the library's tests, IDLE, codecs,
lib2to3 and topic tables left out) and chat transcripts that the script generates, with interpreter
sessions of sums among them. Answers weigh {answer_weight} in the loss, the rest of a chat
{context_weight}, Python {python_weight}. Each stage starts with fresh optimisers; one that follows
another starts from its saved bfloat16 weights.

{stages}

| | |
|---|---|
| optimiser | Muon for the matrices, AdamW for the rest |
| precision | float32 training |
| machine | {machine}, {threads} torch threads of {cpus} CPUs, torch.compile {compiled} |
| versions | Python {python}, torch {torch}, transformers {transformers} |

The run is deterministic: fixed seeds, sorted files, a fixed number of threads. Another kind
of CPU, number of threads, torch version or Python version (other library source) gives
slightly different weights of the same quality.

## Licence
The weights are under the project's Apache-2.0 licence. The Python standard library, whose source
was the training text, is under the PSF licence.
"""


_STAGE = """| stage | {plan.name} |
|---|---|
| steps, tokens per step, tokens in all | {plan.num_steps}, {plan.tokens_per_step}, \
{record.num_tokens:,} |
| prepared tokens: Python, chat | {python_tokens:,}, {chat_tokens:,} |
| row length | {plan.row_length}; {plan.long_row_length} in the last {long_percent:.0f} % of steps |
| learning rates: Muon, AdamW | {plan.matrix_lr}, {plan.vector_lr} |
| schedule | {plan.warmup_steps} steps of warm-up, plateau, linear fall over the last \
{decay_percent:.0f} % |
| seed | {plan.seed} |
| last loss on Python, on chat answers | {record.python_loss:.3f}, {record.chat_loss:.4f} |
| on the way (step: Python, chat) | {history} |
| wall time | {minutes:.1f} minutes |
"""


def _stage_table(stage: StageFacts) -> str:
    record = stage.record
    history = ", ".join(f"{step}: {py:.2f}, {chat:.3f}" for step, py, chat in record.history[::3])
    return _STAGE.format(
        plan=stage.plan,
        record=record,
        python_tokens=stage.num_python_tokens,
        chat_tokens=stage.num_chat_tokens,
        long_percent=stage.plan.long_share * 100,
        decay_percent=stage.plan.decay_share * 100,
        history=history,
        minutes=record.wall_seconds / 60,
    )


def model_card(
    *,
    config: LlamaConfig,
    parameters: int,
    stages: list[StageFacts],
    num_files: int,
    weights: tuple[float, float, float],
    compiled: bool,
) -> str:
    """The card's text; `weights` are the loss weights of answers, chat context and Python."""
    return _CARD.format(
        million=parameters / 1e6,
        parameters=parameters,
        config=config,
        stages="\n".join(_stage_table(stage) for stage in stages),
        num_files=num_files,
        answer_weight=weights[0],
        context_weight=weights[1],
        python_weight=weights[2],
        machine=platform.machine(),
        threads=torch.get_num_threads(),
        cpus=os.cpu_count(),
        compiled="on" if compiled else "off",
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
    )
