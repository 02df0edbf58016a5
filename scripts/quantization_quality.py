"""What rounding a model's weights costs in quality, against the same model in float32.

    python scripts/quantization_quality.py [--model DIR] [--dtype bfloat16]

Without --model: the demo model, on functions of library packages that its training left out and on
chats drawn with a seed of their own (only answers count there): perplexity, and how often the most
likely token is the same. With --model (a checkpoint with random weights will do): the same on
random token ids, without a perplexity. Both: how many tokens of float32's own greedy continuations
are the most likely ones for the others, too, and the error of the logits, relative to their spread.

Shapes: T tokens of a document, V vocabulary.
"""

import argparse
import math
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from demo_model.corpus import module_pieces
from demo_model.packing import Stream, chat_stream, python_stream
from demo_model.transcripts import interpreter_sessions, transcripts
from tokenizers import Tokenizer

import tokasaurus.demo_model
from tokasaurus.model.attention.backend import AttentionBatch
from tokasaurus.model.attention.cpu_backend import CpuBackend
from tokasaurus.model.kernels.install import with_cpu_kernels
from tokasaurus.model.quantization.scheme import quantization_scheme
from tokasaurus.model.registry import load_model

DEMO_FOLDER = Path(tokasaurus.demo_model.__file__).parent
HELD_OUT_PACKAGES = ("idlelib", "distutils", "turtledemo", "tkinter")
VARIANTS: dict[str, tuple[str, int | None]] = {
    "none": ("none", None),
    "int8": ("int8", None),
    "int8_weight_only": ("int8_weight_only", None),
    "int4_weight_only, groups of 32": ("int4_weight_only", 32),
    "int4_weight_only, groups of 64": ("int4_weight_only", 64),
    "int4_weight_only, groups of 128": ("int4_weight_only", 128),
}
PAGE_SIZE = 16
MAX_TOKENS = 256
SEED = 987654321
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Document:
    """Token ids, and which of them count as predicted."""

    ids: list[int]
    counted: np.ndarray


class Model:
    """A checkpoint under the CPU kernels, one document at a time."""

    def __init__(self, folder: Path, dtype: str, quantization: str, group_size: int | None) -> None:
        model = load_model(
            folder,
            dtype=dtype,
            device=CPU,
            model_path="native",
            load_format="auto",
            max_model_len=None,
            progress=lambda *_: None,
        )
        self._backend = CpuBackend(
            model.attention_layers, page_size=PAGE_SIZE, dtype=model.dtype, device=CPU
        )
        scheme = quantization_scheme(quantization, group_size)
        self._model = with_cpu_kernels(model, self._backend, scheme)
        self._backend.allocate(2 * MAX_TOKENS // PAGE_SIZE)

    def logits(self, ids: list[int], start: int = 0) -> torch.Tensor:
        """TV of tokens at positions start, start + 1, ...; those before are in the cache."""
        end = start + len(ids)
        num_blocks = -(-end // PAGE_SIZE)
        positions = np.arange(start, end)
        self._backend.plan(
            AttentionBatch(
                num_prefill_rows=1 if len(ids) > 1 else 0,
                query_lens=np.array([len(ids)], np.int32),
                kv_lens=np.array([end], np.int32),
                block_indptr=np.array([0, num_blocks], np.int32),
                block_ids=np.arange(num_blocks, dtype=np.int32),
                slot_mapping=positions,
            )
        )
        hidden_TD = self._model.forward(
            torch.tensor(ids), torch.from_numpy(positions), self._backend
        )
        return self._model.logits(hidden_TD)

    def continuation(self, prompt: list[int], num_tokens: int) -> list[int]:
        """Greedy, wherever it leads."""
        ids = [int(self.logits(prompt)[-1].argmax())]
        while len(ids) < num_tokens:
            ids.append(int(self.logits(ids[-1:], len(prompt) + len(ids) - 1)[-1].argmax()))
        return ids


def documents(stream: Stream) -> Iterator[Document]:
    bounds = [*stream.starts.tolist(), len(stream.ids)]
    for start, end in pairwise(bounds):
        end = min(end, start + MAX_TOKENS)
        yield Document(stream.ids[start:end].tolist(), stream.counted[start:end])


def held_out_python() -> list[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    pieces: dict[str, None] = {}
    for package in HELD_OUT_PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            text = path.read_bytes().decode("utf-8", errors="ignore")
            if text.isascii() and path.stat().st_size < 100_000:
                pieces.update(dict.fromkeys(module_pieces(text)))
    ordered = list(pieces)
    random.Random(SEED).shuffle(ordered)
    return ordered


def demo_texts(num_tokens: int) -> dict[str, list[Document]]:
    tokenizer = Tokenizer.from_file(str(DEMO_FOLDER / "tokenizer.json"))
    python = python_stream(tokenizer, held_out_python()[: num_tokens // 50])
    chats = chat_stream(tokenizer, transcripts(SEED), interpreter_sessions(SEED), num_tokens)
    return {
        "library source": limited(documents(python), num_tokens),
        "chat answers": limited(documents(chats), num_tokens),
    }


def random_texts(folder: Path, num_tokens: int) -> dict[str, list[Document]]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rng = random.Random(SEED)
    all_count = np.ones(128, np.bool_)
    num_ids = min(tokenizer.get_vocab_size(), 10_000)
    found = (
        Document([rng.randrange(num_ids) for _ in range(128)], all_count)
        for _ in range(max(1, num_tokens // 128))
    )
    return {"random tokens": list(found)}


def limited(found: Iterator[Document], num_tokens: int) -> list[Document]:
    kept: list[Document] = []
    for document in found:
        if num_tokens <= 0:
            break
        if len(document.ids) > 8:
            kept.append(document)
            num_tokens -= len(document.ids)
    return kept


@dataclass(slots=True)
class Tally:
    """Sums over tokens."""

    num_tokens: int = 0
    loss: float = 0.0
    same_choice: int = 0
    relative_errors: float = 0.0

    def add(self, reference_TV: torch.Tensor, logits_TV: torch.Tensor, ids_T: torch.Tensor) -> None:
        """Logits at the positions before the tokens `ids_T`."""
        self.num_tokens += len(ids_T)
        self.loss += float(torch.nn.functional.cross_entropy(logits_TV, ids_T, reduction="sum"))
        self.same_choice += int((reference_TV.argmax(-1) == logits_TV.argmax(-1)).sum())
        errors_T = (logits_TV - reference_TV).norm(dim=-1)
        spreads_T = (reference_TV - reference_TV.mean(-1, keepdim=True)).norm(dim=-1)
        self.relative_errors += float((errors_T / spreads_T).sum())


def compare(reference: Model, other: Model, texts: list[Document]) -> Tally:
    tally = Tally()
    for document in texts:
        ids_T = torch.tensor(document.ids)
        rows = torch.from_numpy(document.counted[1:]).nonzero().flatten()
        pair = [model.logits(document.ids)[rows] for model in (reference, other)]
        tally.add(pair[0], pair[1], ids_T[rows + 1])
    return tally


def agreement(
    other: Model, prompts: list[list[int]], continuations: list[list[int]]
) -> tuple[float, float]:
    """Share of the tokens that `other` would choose after the same text; share of the prompts whose
    whole continuation it would write itself."""
    same, whole = [], 0
    for prompt, tokens in zip(prompts, continuations, strict=True):
        chosen = other.logits(prompt + tokens[:-1])[len(prompt) - 1 :].argmax(-1)
        equal = (chosen == torch.tensor(tokens)).tolist()
        same += equal
        whole += all(equal)
    return sum(same) / len(same), whole / len(prompts)


def print_row(cells: list[str]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def table_header(texts: dict[str, list[Document]], with_perplexity: bool) -> list[str]:
    header = ["weights"]
    for name in texts:
        header += [f"{name}: perplexity"] if with_perplexity else []
        header += [f"{name}: same top token", "logits' error"]
    return [*header, "greedy tokens kept", "whole continuations kept"]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", type=Path, help="folder of a checkpoint; default: the demo model"
    )
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--num-tokens", type=int, default=20_000, help="of each text")
    parser.add_argument("--num-prompts", type=int, default=100)
    parser.add_argument("--num-greedy-tokens", type=int, default=48)
    args = parser.parse_args()
    is_demo = args.model is None
    folder = args.model or DEMO_FOLDER
    texts = demo_texts(args.num_tokens) if is_demo else random_texts(folder, args.num_tokens)
    reference = Model(folder, "float32", "none", None)
    every = [document for found in texts.values() for document in found]
    prompts = [document.ids[:64] for document in every[:: max(1, len(every) // args.num_prompts)]]
    continuations = [reference.continuation(p, args.num_greedy_tokens) for p in prompts]
    header = table_header(texts, is_demo)
    print_row(header)
    print_row(["---"] * len(header))
    variants = {"float32": ("none", None), **VARIANTS}
    for label, (quantization, group_size) in variants.items():
        dtype = "float32" if label == "float32" else args.dtype
        other = Model(folder, dtype, quantization, group_size)
        cells = [args.dtype if label == "none" else label]
        for found in texts.values():
            tally = compare(reference, other, found)
            cells += [f"{math.exp(tally.loss / tally.num_tokens):.3f}"] if is_demo else []
            cells.append(f"{100 * tally.same_choice / tally.num_tokens:.2f}%")
            cells.append(f"{100 * tally.relative_errors / tally.num_tokens:.2f}%")
        tokens, whole = agreement(other, prompts, continuations)
        print_row([*cells, f"{100 * tokens:.2f}%", f"{100 * whole:.0f}%"])


if __name__ == "__main__":
    main()
