"""The training text: the interpreter's own standard library, in a fixed order."""

import random
import re
import sysconfig
from collections import Counter
from pathlib import Path

_SKIPPED_PARTS = {
    "site-packages",
    "test",
    "tests",
    "idlelib",
    "turtledemo",
    "encodings",
    "pydoc_data",
    "lib2to3",
    "__pycache__",
}
_MAX_FILE_BYTES = 400_000


def standard_library_sources() -> list[str]:
    """Text of every standard library module worth learning from, sorted by path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    texts = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _SKIPPED_PARTS.intersection(relative.parts) or path.stat().st_size > _MAX_FILE_BYTES:
            continue
        text = path.read_bytes().decode("utf-8", errors="ignore")
        if text.strip():
            texts.append(text.replace("\r\n", "\n"))
    return texts


def frequent_words(texts: list[str], count: int) -> list[str]:
    """The most frequent lower-case words of three to nine letters, ties in alphabetical order."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(re.findall(r"(?<![\w.])[a-z]{3,9}(?!\w)", text))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [word for word, _ in ranked[:count]]


def shuffled(texts: list[str], seed: int) -> list[str]:
    """A copy in an order that depends on the seed alone."""
    order = list(texts)
    random.Random(seed).shuffle(order)
    return order
