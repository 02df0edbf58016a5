"""Compile time, and time per token mask, of the grammar engines over a vocabulary of 50,000.

    python scripts/bench_grammars.py llguidance|xgrammar [FOLDER WITH A tokenizer.json]

xgrammar has to be installed for this. Without a folder, a tokenizer is trained on the standard
library's source. Each engine is measured in a process of its own.
"""

import json
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from tokasaurus.tokenization.tokenizer import Tokenizer

VOCAB_SIZE = 50_000
Run = Callable[[list[int]], tuple[list[float], list[float]]]
"""Token ids of a matching text -> seconds per mask and per token taken in."""

_CLOSED = {"type": "object", "additionalProperties": False}
_POINT = _CLOSED | {
    "properties": {
        "x": {"type": "number"},
        "y": {"type": "array", "items": {"type": "string", "maxLength": 40}},
    },
    "required": ["x", "y"],
}
_PERSON = _CLOSED | {
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"type": "string"},
        "tags": {"type": "array", "items": {"enum": ["a", "bee", "sea", "dog"]}, "maxItems": 5},
        "address": _CLOSED
        | {
            "properties": {
                "street": {"type": "string"},
                "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
            },
            "required": ["street", "zip"],
        },
    },
    "required": ["name", "age", "email", "tags", "address"],
}
_ADA = {
    "name": "Ada Lovelace the first of her name",
    "age": 36,
    "email": "ada@example.org",
    "tags": ["a", "sea"],
    "address": {"street": "12 St James's Square, near the corner", "zip": "12345"},
}
_FIELDS = [f"field_{i}" for i in range(60)]
_WIDE = _CLOSED | {
    "properties": {name: {"anyOf": [{"type": "string"}, _POINT]} for name in _FIELDS},
    "required": _FIELDS,
}
_WIDE_VALUE = {
    name: "some text of a usual length here" if i % 2 else {"x": 1.5, "y": ["abc def", "g"]}
    for i, name in enumerate(_FIELDS)
}
CASES: list[tuple[str, dict[str, Any], Any]] = [
    ("schema", _PERSON, _ADA),
    ("60 fields", _WIDE, _WIDE_VALUE),
    ("any object", {"type": "object"}, _ADA),
]


def train_tokenizer() -> Tokenizer:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    paths = (Path(sysconfig.get_path(name)).rglob("*.py") for name in ("stdlib", "purelib"))
    files = [str(path) for group in paths for path in sorted(group)][:4000]
    backend.train(files, trainer)
    return Tokenizer(backend, {"eos_token": "<eos>"})


def timed(action: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    return action(), time.perf_counter() - began


def llguidance_engine(tokenizer: Tokenizer) -> Callable[[dict[str, Any]], Run]:
    from llguidance import LLMatcher

    from tokasaurus.server.structured_output import StructuredOutput
    from tokasaurus.worker.grammar_tokens import GrammarTokens

    tokens, seconds = timed(lambda: GrammarTokens(tokenizer, tokenizer.vocab_size))
    print(f"vocabulary: {seconds * 1e3:.0f} ms")
    mask = np.zeros(tokens.num_mask_words, np.uint32)

    def compiled(schema: dict[str, Any]) -> Run:
        grammar = StructuredOutput(json_schema=schema).compiled()
        pristine = LLMatcher(tokens._tokens, grammar, log_level=0)

        def run(token_ids: list[int]) -> tuple[list[float], list[float]]:
            matcher = pristine.deep_copy()
            return step_through(
                token_ids,
                lambda: matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes),
                matcher.consume_token,
            )

        return run

    return compiled


def xgrammar_engine(tokenizer: Tokenizer) -> Callable[[dict[str, Any]], Run]:
    xgrammar, seconds = timed(lambda: __import__("xgrammar"))
    print(f"import: {seconds:.1f} s")
    texts = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    info, seconds = timed(
        lambda: xgrammar.TokenizerInfo(texts, xgrammar.VocabType.RAW, stop_token_ids=[0])
    )
    print(f"vocabulary: {seconds * 1e3:.0f} ms")
    mask = xgrammar.allocate_token_bitmask(1, tokenizer.vocab_size)

    def compiled(schema: dict[str, Any]) -> Run:
        compiler = xgrammar.GrammarCompiler(info, max_threads=1)
        grammar = compiler.compile_json_schema(json.dumps(schema), any_whitespace=False)

        def run(token_ids: list[int]) -> tuple[list[float], list[float]]:
            matcher = xgrammar.GrammarMatcher(grammar)
            return step_through(
                token_ids,
                lambda: matcher.fill_next_token_bitmask(mask),
                matcher.accept_token,
            )

        return run

    return compiled


def step_through(
    token_ids: list[int], compute_mask: Callable[[], Any], consume: Callable[[int], bool]
) -> tuple[list[float], list[float]]:
    masks, consumed = [], []
    for token_id in token_ids:
        masks.append(timed(compute_mask)[1])
        is_accepted, seconds = timed(lambda token_id=token_id: consume(token_id))
        assert is_accepted, f"token {token_id} was refused"
        consumed.append(seconds)
    return masks, consumed


def main() -> None:
    name, *folder = sys.argv[1:]
    tokenizer = Tokenizer.load(Path(folder[0])) if folder else train_tokenizer()
    engine = {"llguidance": llguidance_engine, "xgrammar": xgrammar_engine}[name](tokenizer)
    for label, schema, value in CASES:
        run, compile_seconds = timed(lambda schema=schema: engine(schema))
        token_ids = tokenizer.encode(json.dumps(value), add_special_tokens=False)
        masks, consumed = map(list, zip(*(run(token_ids) for _ in range(3)), strict=True))
        per_mask = [seconds for part in masks for seconds in part]
        print(
            f"{label}: compile {compile_seconds * 1e3:.1f} ms; {len(token_ids)} tokens; mask "
            f"median {statistics.median(per_mask) * 1e6:.0f}, mean "
            f"{statistics.mean(per_mask) * 1e6:.0f}, max {max(per_mask) * 1e6:.0f} us; take in "
            f"{statistics.mean(s for part in consumed for s in part) * 1e6:.0f} us"
        )


if __name__ == "__main__":
    main()
