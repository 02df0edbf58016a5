"""Makes a tokenizer.json for checkpoints with older files only (SentencePiece, vocab + merges).

The conversion needs transformers, so it runs once in a process of its own
(`python -m tokasaurus.tokenization.convert FOLDER FILE`); the result is kept in the user's cache.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tokasaurus.errors import ModelError

_CONVERTIBLE = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "merges.txt",
)
_READ_TOO = (
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_TIMEOUT_SECONDS = 300


def converted_tokenizer_file(folder: Path) -> Path:
    """The cached tokenizer.json for a folder that has none, converted first if need be.

    Raises ModelError when there is nothing to convert or the conversion fails.
    """
    sources = [folder / name for name in _CONVERTIBLE if (folder / name).is_file()]
    if not sources:
        raise ModelError(
            f"{folder} has no tokenizer: neither tokenizer.json nor one of "
            f"{', '.join(_CONVERTIBLE)}. Give tokenizer= a folder or hub id that has one."
        )
    sources += [folder / name for name in _READ_TOO if (folder / name).is_file()]
    digest = hashlib.sha256()
    for source in sources:
        digest.update(f"{source.name}:{source.stat().st_size}:".encode())
        digest.update(source.read_bytes())
    target = _cache_folder() / f"{digest.hexdigest()[:32]}.json"
    if not target.is_file():
        _convert_in_subprocess(folder, target)
    return target


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tokasaurus" / "tokenizers"


def _convert_in_subprocess(folder: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        unfinished = Path(scratch) / target.name
        command = [sys.executable, "-m", "tokasaurus.tokenization.convert"]
        try:
            result = subprocess.run(
                [*command, str(folder), str(unfinished)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise _failure(folder, f"no result after {_TIMEOUT_SECONDS} s") from error
        if result.returncode != 0 or not unfinished.is_file():
            lines = result.stderr.strip().splitlines()
            raise _failure(folder, lines[-1] if lines else f"exit code {result.returncode}")
        unfinished.replace(target)  # whole or not at all, also when two processes convert


def _failure(folder: Path, reason: str) -> ModelError:
    return ModelError(
        f"The tokenizer in {folder} has no tokenizer.json, and could not be converted: {reason}. "
        "Some old formats need `pip install sentencepiece protobuf`; or give tokenizer= a folder "
        "or hub id that has a tokenizer.json."
    )


def main() -> None:
    from transformers import AutoTokenizer

    folder, target = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        sys.exit(f"{type(tokenizer).__name__} has no form that the tokenizers package can run")
    backend.save(target)


if __name__ == "__main__":
    main()
