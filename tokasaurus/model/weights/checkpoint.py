"""A checkpoint folder's weights: one safetensors file, or several with an index."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from tokasaurus.errors import ModelError
from tokasaurus.model.weights.safetensors_file import SafetensorsFile
from tokasaurus.model.weights.tensors import CheckpointTensor

_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"


class Checkpoint:
    """All tensors of a folder, in file order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = [SafetensorsFile(path) for path in weight_files(folder)]
        self.num_bytes = sum(file.path.stat().st_size for file in self._files)

    def tensors(self) -> Iterator[CheckpointTensor]:
        for file in self._files:
            for name in file.names():
                yield file.tensor(name)

    def names(self) -> Iterator[str]:
        for file in self._files:
            yield from file.names()

    def floating_dtype(self) -> torch.dtype | None:
        """The dtype of the first floating-point tensor."""
        for file in self._files:
            for name in file.names():
                dtype = file.dtype(name)
                if dtype.is_floating_point:
                    return dtype
        return None


def weight_files(folder: Path) -> list[Path]:
    """The folder's safetensors files, or an error that says what to do about others."""
    single, index = folder / _SINGLE_FILE, folder / _INDEX_FILE
    if single.is_file():
        return [single]
    if index.is_file():
        return _indexed_files(index)
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")) or any(folder.glob("*.pt")):
        raise ModelError(
            f"{folder} has its weights only as pickled .bin or .pt files, which can run code when "
            "they are read. Convert them once: load the model in transformers from a source you "
            "trust and call save_pretrained."
        )
    raise ModelError(
        f"{folder} has no {_SINGLE_FILE} and no {_INDEX_FILE}; download the model again, or pass "
        "load_format=dummy for random weights."
    )


def _indexed_files(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is broken; download the model again.") from error
    files = [index.parent / str(name) for name in sorted(names, key=str)]
    for file in files:
        if file.parent != index.parent:
            raise ModelError(f"{index} names a file outside its folder: {file}.")
        if not file.is_file():
            raise ModelError(f"{file} is missing although {index.name} lists it; download it.")
    return files
