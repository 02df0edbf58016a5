"""Trains the embedded demo model from nothing but the interpreter's own standard library.

Usage: python scripts/train_demo_model.py --out DIR
"""

import argparse
import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from demo_model import packing
from demo_model.card import StageFacts, model_card
from demo_model.corpus import frequent_words, shuffled, standard_library_sources
from demo_model.export import export
from demo_model.tokenizer import VOCAB_SIZE, train_tokenizer
from demo_model.training import TrainingPlan, TrainingRecord, build_model, train
from demo_model.transcripts import (
    BROAD_MIX,
    HARD_MIX,
    ChatMix,
    interpreter_sessions,
    transcripts,
)
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

NUM_SPELLING_WORDS = 1500
NUM_TOKENIZER_CHATS = 4000
SESSION_EVERY = 6
SEED = 20240607
STAGE_FACTS = "stage.json"

FIRST_STAGE = TrainingPlan(
    name="first: half Python, half chat",
    num_steps=1300,
    long_share=0.12,
    decay_share=0.6,
    matrix_lr=0.02,
    vector_lr=4e-3,
    seed=SEED,
)
SECOND_STAGE = TrainingPlan(
    name="second: a quarter Python, more of the hard kinds of question",
    num_steps=600,
    chat_rows_of_eight=6,
    long_share=0.0,
    warmup_steps=20,
    decay_share=0.8,
    matrix_lr=0.006,
    vector_lr=1e-3,
    seed=SEED + 10,
)


@dataclass(slots=True)
class Corpus:
    """The texts, the words worth spelling, and the tokenizer trained on both."""

    texts: list[str]
    words: list[str]
    tokenizer: Tokenizer


@dataclass(slots=True)
class Material:
    """The token streams of one stage."""

    python: packing.Stream
    chat: packing.Stream


def model_config() -> LlamaConfig:
    """The demo model's shape: small enough to embed, even enough to split over 2 or 4 ranks."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )


def collect_corpus() -> Corpus:
    """Reads the library and trains the tokenizer."""
    texts = standard_library_sources()
    words = frequent_words(texts, NUM_SPELLING_WORDS)
    sample = itertools.islice(transcripts(SEED + 1, words, BROAD_MIX), NUM_TOKENIZER_CHATS)
    sample_texts = ["\n".join(message["content"] for message in chat) for chat in sample]
    return Corpus(texts, words, train_tokenizer(texts + sample_texts))


def prepare(corpus: Corpus, plan: TrainingPlan, mix: ChatMix) -> Material:
    """Packs both streams of a stage."""
    chat = packing.chat_stream(
        corpus.tokenizer,
        transcripts(plan.seed + 2, corpus.words, mix),
        interpreter_sessions(plan.seed + 3),
        plan.num_tokens(chat=True),
        SESSION_EVERY,
    )
    ordered = shuffled(corpus.texts, plan.seed)
    python = packing.python_stream(corpus.tokenizer, ordered, plan.num_tokens(chat=False))
    return Material(python=python, chat=chat)


def run_stage(
    model: LlamaForCausalLM,
    corpus: Corpus,
    plan: TrainingPlan,
    mix: ChatMix,
    out: Path,
    facts: list[StageFacts],
    arguments: argparse.Namespace,
) -> None:
    """Trains one stage in place, saves it to a folder and adds its facts to the list."""
    material = prepare(corpus, plan, mix)

    def save(record: TrainingRecord) -> None:
        stage = StageFacts(plan, record, len(material.python.ids), len(material.chat.ids))
        card = model_card(
            config=model.config,
            parameters=model.num_parameters(),
            stages=[*facts, stage],
            num_files=len(corpus.texts),
            weights=(packing.ANSWER_WEIGHT, packing.CONTEXT_WEIGHT, packing.PYTHON_WEIGHT),
            compiled=not arguments.no_compile,
        )
        export(model, corpus.tokenizer, card, out)

    def on_step(step: int, record: TrainingRecord) -> None:
        if (step + 1) % 20 == 0:
            rate = record.num_tokens / record.wall_seconds
            print(
                f"step {step + 1}/{plan.num_steps} python {record.python_loss:.3f} "
                f"chat {record.chat_loss:.4f} tokens/s {rate:.0f}",
                flush=True,
            )
        if arguments.save_every and (step + 1) % arguments.save_every == 0:
            save(record)

    python_rows, chat_rows = packing.RowSource(material.python), packing.RowSource(material.chat)
    record = train(model, python_rows, chat_rows, plan, not arguments.no_compile, on_step)
    save(record)
    facts.append(StageFacts(plan, record, len(material.python.ids), len(material.chat.ids)))
    print(f"saved {out} after {record.wall_seconds / 60:.1f} minutes")


def first_stage(
    corpus: Corpus, folder: Path, facts: list[StageFacts], arguments: argparse.Namespace
) -> None:
    """Trains the first stage into a folder and leaves its facts there for later runs."""
    model = build_model(model_config(), FIRST_STAGE.seed)
    run_stage(model, corpus, FIRST_STAGE, BROAD_MIX, folder, facts, arguments)
    saved = {
        "record": asdict(facts[0].record),
        "num_python_tokens": facts[0].num_python_tokens,
        "num_chat_tokens": facts[0].num_chat_tokens,
    }
    (folder / STAGE_FACTS).write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")


def finished_first_stage(folder: Path) -> StageFacts:
    """The facts that an earlier run left in its first-stage folder."""
    saved = json.loads((folder / STAGE_FACTS).read_text(encoding="utf-8"))
    record = TrainingRecord(**saved["record"])
    return StageFacts(FIRST_STAGE, record, saved["num_python_tokens"], saved["num_chat_tokens"])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--save-every", type=int, default=0, help="also save every N steps")
    parser.add_argument(
        "--first-stage", type=Path, help="folder of a finished first stage, to skip that stage"
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="skip torch.compile (needs a C++ compiler)"
    )
    return parser.parse_args()


def main() -> None:
    """Runs both stages; the second starts from the first one's saved bfloat16 weights."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    corpus = collect_corpus()
    facts: list[StageFacts] = []
    first_folder = arguments.first_stage or arguments.out.with_name(arguments.out.name + "-first")
    if arguments.first_stage is None:
        first_stage(corpus, first_folder, facts, arguments)
    else:
        facts.append(finished_first_stage(first_folder))
    model = LlamaForCausalLM.from_pretrained(first_folder, dtype=torch.float32).train()
    run_stage(model, corpus, SECOND_STAGE, HARD_MIX, arguments.out, facts, arguments)


if __name__ == "__main__":
    main()
