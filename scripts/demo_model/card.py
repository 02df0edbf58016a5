"""The model card: what the demo model is for, how it was made and what happened on the way."""

import os
import platform

import torch
import transformers
from transformers import LlamaConfig

from demo_model.training import TrainingPlan, TrainingRecord
from demo_model.transcripts import LARGEST_COUNT, LARGEST_SUMMAND
from demo_model.vocabulary import CORE_WORDS

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
  indentation. The code looks right; nobody promises that it works. It saw code without comments
  and docstrings, so it writes none. A prompt should end with a visible character: after a line
  break of its own the indentation is easily lost. Sample (temperature 0.7 does well): greedily, it
  soon repeats a line for ever.
- In chat it answers the kinds of question it was trained on: sums of two numbers up to
  {largest_summand} and the differences that undo them, products of single digits, spelling
  {num_words} common words, counting up and down below {largest_count}, repeating a few of those
  words, what comes after or before a day or a month, name/age/city/job sentences as JSON,
  greetings and who it is. It saw system prompts and chats of up to three exchanges.
- It is **not** for anything else. It knows no facts, follows no other instruction, and its
  answers are not checked. It was trained on rows of {plan.python_row_length} tokens and less: it
  runs up to {config.max_position_embeddings} positions, but makes less and less sense on the way.

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
| vocabulary | {config.vocab_size}, byte-level BPE, single digits, spaces \
apart, `<|endoftext|>` `<|im_start|>` `<|im_end|>` |

## How it was made
`python scripts/train_demo_model.py --out DIR` from the project's root, nothing downloaded. One
stage on two streams of text: short functions and classes of the standard library's own source
({num_files} files, {python_tokens:,} tokens, {python_seen:,} of them dealt; unparsed from the
syntax tree without comments and docstrings) and chat transcripts that the script generates, with
interpreter sessions of sums among them ({chat_seen:,} tokens dealt). In a chat only the answers
count in the loss, and both streams weigh the same.

| | |
|---|---|
| steps, tokens in all | {plan.num_steps}, {record.num_tokens:,} |
| chat rows per step, tokens per row | {plan.num_chat_rows}, {plan.chat_row_length} |
| Python rows per step, tokens per row | {plan.num_python_rows}, {plan.python_row_length} |
| optimiser | AdamW, learning rate {plan.learning_rate}, betas {plan.betas} |
| initialisation | queries equal to keys, outputs undoing values, embeddings of unit length |
| schedule | {plan.warmup_steps} steps of warm-up, plateau, linear fall to zero over the last \
{plan.decay_steps} |
| precision, seed | float32 training, {plan.seed} |
| last loss on Python, on chat answers | {record.python_loss:.3f}, {record.chat_loss:.4f} |
| wall time | {minutes:.1f} minutes |
| machine | {machine}, {threads} torch thread(s) of {cpus} CPUs shared with other work, \
torch.compile {compiled} |
| versions | Python {python}, torch {torch}, transformers {transformers} |

Losses on the way (step: Python, chat answers): {history}.

Seeds, the order of files and the number of threads are fixed, so a rerun on the same machine
should give the same weights (not tried). Another kind of CPU, number of threads, torch version or
Python version (other library source) gives slightly different weights of the same quality.

{scores}
## Licence
The weights are under the project's Apache-2.0 licence. The Python standard library, whose source
was the training text, is under the PSF licence.
"""

_SCORES = """## How well it answers
Greedy answers to {asked} random questions of each kind, alone in a chat, counted right only if
equal to the letter. The questions are drawn as in training with a seed of their own, so some were
seen in training.

| kind | right |
|---|---|
{rows}
"""


def score_table(scores: dict[str, int], asked: int) -> str:
    """The card's section on how many of `asked` random questions of each kind came out right."""
    rows = "\n".join(f"| {kind} | {right} of {asked} |" for kind, right in scores.items())
    return _SCORES.format(asked=asked, rows=rows)


def model_card(
    *,
    config: LlamaConfig,
    parameters: int,
    plan: TrainingPlan,
    record: TrainingRecord,
    num_files: int,
    num_python_tokens: int,
    compiled: bool,
    scores: str,
) -> str:
    """The card's text; `scores` is a section from `score_table`."""
    return _CARD.format(
        million=parameters / 1e6,
        parameters=parameters,
        config=config,
        plan=plan,
        record=record,
        num_files=num_files,
        python_tokens=num_python_tokens,
        python_seen=plan.num_steps * plan.python_tokens_per_step,
        chat_seen=plan.num_steps * plan.chat_tokens_per_step,
        largest_summand=LARGEST_SUMMAND,
        largest_count=LARGEST_COUNT,
        num_words=len(CORE_WORDS),
        history=", ".join(f"{step}: {py:.2f}, {chat:.3f}" for step, py, chat in record.history),
        minutes=record.wall_seconds / 60,
        machine=platform.machine(),
        threads=torch.get_num_threads(),
        cpus=os.cpu_count(),
        compiled="on" if compiled else "off",
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        scores=scores,
    )
