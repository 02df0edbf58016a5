"""Trains the embedded demo model from nothing but the interpreter's own standard library.

Usage: python scripts/train_demo_model.py --out DIR
"""

import argparse
import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from demo_model import packing
from demo_model.card import model_card, score_table
from demo_model.corpus import standard_library_pieces
from demo_model.evaluation import score
from demo_model.export import export
from demo_model.tokenizer import VOCAB_SIZE, train_tokenizer
from demo_model.training import TrainingPlan, TrainingRecord, build_model, train
from demo_model.transcripts import interpreter_sessions, transcripts
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

NUM_TOKENIZER_CHATS = 4000
NUM_QUESTIONS = 40
SEED = 20240607

PLAN = TrainingPlan(
    num_steps=2800,
    num_chat_rows=14,
    chat_row_length=96,
    num_python_rows=4,
    python_row_length=256,
    warmup_steps=40,
    decay_steps=2400,
    learning_rate=2e-3,
    betas=(0.9, 0.98),
    seed=SEED,
)


@dataclass(slots=True)
class Material:
    """The tokenizer, both token streams and the number of files behind the Python one."""

    tokenizer: Tokenizer
    python: packing.Stream
    chat: packing.Stream
    num_files: int


def model_config() -> LlamaConfig:
    """The demo model's shape: small enough to embed, even enough to split over 2 or 4 ranks."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )


def prepare(plan: TrainingPlan) -> Material:
    """Reads the library, trains the tokenizer and packs both streams."""
    pieces, num_files = standard_library_pieces(plan.seed)
    sample = itertools.islice(transcripts(plan.seed + 1), NUM_TOKENIZER_CHATS)
    chats = ["\n".join(message["content"] for message in chat) for chat in sample]
    tokenizer = train_tokenizer(pieces + chats)
    python = packing.python_stream(tokenizer, pieces)
    chat = packing.chat_stream(
        tokenizer,
        transcripts(plan.seed + 2),
        interpreter_sessions(plan.seed + 3),
        plan.num_steps * plan.chat_tokens_per_step,
    )
    return Material(tokenizer, python, chat, num_files)


def run(
    model: LlamaForCausalLM, material: Material, plan: TrainingPlan, arguments: argparse.Namespace
) -> None:
    """Trains the model in place, rounds its weights, asks it questions and saves it."""

    def on_step(step: int, record: TrainingRecord) -> None:
        if (step + 1) % 20 == 0:
            rate = record.num_tokens / record.wall_seconds
            print(
                f"step {step + 1}/{plan.num_steps} python {record.python_loss:.3f} "
                f"chat {record.chat_loss:.4f} tokens/s {rate:.0f}",
                flush=True,
            )

    python_rows = packing.RowSource(material.python, plan.python_row_length)
    chat_rows = packing.RowSource(material.chat, plan.chat_row_length)
    record = train(model, python_rows, chat_rows, plan, not arguments.no_compile, on_step)
    model.to(torch.bfloat16).float().eval()
    scores = score(model, material.tokenizer, NUM_QUESTIONS, plan.seed + 4)
    card = model_card(
        config=model.config,
        parameters=model.num_parameters(),
        plan=plan,
        record=record,
        num_files=material.num_files,
        num_python_tokens=len(material.python.ids),
        compiled=not arguments.no_compile,
        scores=score_table(scores, NUM_QUESTIONS),
    )
    export(model, material.tokenizer, card, arguments.out)
    print(f"saved {arguments.out} after {record.wall_seconds / 60:.1f} minutes: {scores}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--steps", type=int, help="stop after fewer steps (to try the script)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument(
        "--no-compile", action="store_true", help="skip torch.compile (needs a C++ compiler)"
    )
    return parser.parse_args()


def main() -> None:
    """Trains by the plan, or by one of fewer steps, and leaves a Hugging Face folder."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    plan = PLAN
    if arguments.steps:
        plan = dataclasses.replace(plan, num_steps=arguments.steps)
    run(build_model(model_config(), plan.seed), prepare(plan), plan, arguments)


if __name__ == "__main__":
    main()
