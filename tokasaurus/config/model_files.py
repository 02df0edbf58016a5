"""Finds a model's folder (the demo model, a local folder, a hub id) and reads its config files.

Free of torch and transformers: servers read these too.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokasaurus.demo_model import DEMO_MODEL_DIR
from tokasaurus.errors import ModelError

DEMO_MODEL = "demo"

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")

_WANTED = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.tiktoken", "*.txt"]
_UNWANTED = ["consolidated*", "[!1]*/*", "1[!_]*/*"]
"""Of subfolders none but 1_Pooling, which says how a model for embeddings pools."""

_CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
    "n_ctx",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What config.json and generation_config.json say, where everyone needs it."""

    folder: Path
    architecture: str
    model_type: str
    vocab_size: int
    max_position_embeddings: int | None
    """Trained context; None when config.json names none (relative positions)."""
    eos_token_ids: tuple[int, ...]
    """Of both files: any of them ends a sequence."""
    bos_token_id: int | None
    dtype: str | None
    """"bfloat16", "float32" ...; None when config.json doesn't say."""
    values: dict[str, Any] = field(repr=False)
    """config.json as it is."""
    generation: dict[str, Any] = field(repr=False)
    """generation_config.json as it is; empty without one."""


def resolve_model(model: str) -> Path:
    """The local folder of "demo", a folder, or a hub id, which is downloaded when needed.

    Raises ModelError when there is no such folder or the hub can't deliver.
    """
    if model == DEMO_MODEL:
        return DEMO_MODEL_DIR
    if not model.strip():
        raise ModelError("model is empty; give a folder, a hub id or demo.")
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} has no config.json, so it is not a model folder.")
        return folder
    if folder.exists():
        raise ModelError(f"{folder} is a file; model= takes the folder that contains it.")
    if not _HUB_ID.match(model):
        raise ModelError(f"There is no folder {model}, and it is not a hub id (owner/name) either.")
    return _download(model)


def resolve_tokenizer(model: str, tokenizer: str | None) -> Path:
    """The folder of `tokenizer` if that is given (it need not hold a model), else the model's."""
    if tokenizer is None:
        return resolve_model(model)
    local = Path(tokenizer).expanduser()
    return local if local.is_dir() else resolve_model(tokenizer)


def _download(repo_id: str) -> Path:
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        path = snapshot_download(repo_id, allow_patterns=_WANTED, ignore_patterns=_UNWANTED)
    except GatedRepoError as error:
        raise ModelError(
            f"{repo_id} is gated: accept its terms on its hub page and log in with "
            "`hf auth login`, or set HF_TOKEN."
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"There is no folder {repo_id}, and the hub has no public model of that id; check the "
            "spelling, or log in with `hf auth login` if it is private."
        ) from error
    except HFValidationError as error:
        raise ModelError(f"{repo_id} is neither a local folder nor a valid hub id.") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise ModelError(
            f"There is no folder {repo_id}, and the hub can't be reached ({_first_line(error)}). "
            "Check the network, or give model= a local folder; model=demo needs no download."
        ) from error
    return Path(path)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def read_model_config(folder: Path) -> ModelConfig:
    """Raises ModelError when config.json is missing, broken or not a language model's."""
    values = _read_json(folder / "config.json")
    generation_file = folder / "generation_config.json"
    generation = _read_json(generation_file) if generation_file.is_file() else {}
    architectures = values.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise ModelError(f"{folder}/config.json names no architectures; it can't be run.")
    text = values.get("text_config")
    text = {**values, **text} if isinstance(text, dict) else values
    vocab_size = text.get("vocab_size")
    if not isinstance(vocab_size, int):
        raise ModelError(f"{folder}/config.json has no vocab_size; it is not a language model's.")
    eos_token_ids = (*_ids(text, "eos_token_id"), *_ids(generation, "eos_token_id"))
    bos_token_ids = (*_ids(generation, "bos_token_id"), *_ids(text, "bos_token_id"))
    dtype = values.get("dtype", values.get("torch_dtype", text.get("dtype")))
    return ModelConfig(
        folder=folder,
        architecture=str(architectures[0]),
        model_type=str(values.get("model_type", "")),
        vocab_size=vocab_size,
        max_position_embeddings=next(
            (text[key] for key in _CONTEXT_KEYS if isinstance(text.get(key), int)), None
        ),
        eos_token_ids=tuple(dict.fromkeys(eos_token_ids)),
        bos_token_id=bos_token_ids[0] if bos_token_ids else None,
        dtype=dtype.removeprefix("torch.") if isinstance(dtype, str) else None,
        values=values,
        generation=generation,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing; it is not a model folder.") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} can't be read ({error}); download the model again.") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} does not hold an object; download the model again.")
    return values


def _ids(values: dict[str, Any], key: str) -> tuple[int, ...]:
    value = values.get(key)
    found = value if isinstance(value, list) else [value]
    return tuple(x for x in found if isinstance(x, int) and not isinstance(x, bool))
