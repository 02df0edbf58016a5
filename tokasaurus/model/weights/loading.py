"""Fills a decoder from a checkpoint, tensor by tensor, or with random numbers."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from tokasaurus.errors import ModelError
from tokasaurus.model.layers.loading import LoadableLayer
from tokasaurus.model.weights.checkpoint import Checkpoint

Progress = Callable[[float, str], None]
"""Called with a fraction from 0 to 1 and a text for people."""

LAYER = "{layer}"
"""Stands for the layer's index in weight names."""

_IGNORED = re.compile(r"\.rotary_emb\.inv_freq$")
"""A buffer that old checkpoints carry and everyone computes."""

_DUMMY_STD = 0.02


@dataclass(frozen=True, slots=True)
class _Target:
    layer: LoadableLayer
    part: str
    parameter: str


def load_weights(
    model: nn.Module,
    names: Mapping[str, str],
    num_layers: int,
    checkpoint: Checkpoint,
    progress: Progress,
    unused: frozenset[str] = frozenset(),
    local_path: Callable[[str], str | None] = lambda path: path,
    layer_loaded: Callable[[nn.Module], None] = lambda _layer: None,
) -> None:
    """`names` maps a checkpoint's module name to "module path" or "module path:part" of `model`.

    Raises ModelError for a missing, unexpected or mis-shaped tensor. `unused` are checkpoint names
    that may be there without being wanted. `local_path` says where a module of the whole model is
    in `model`, None if another worker has it: its tensors are not read. `layer_loaded` gets each
    layer when the last of its tensors has been read.
    """
    targets, elsewhere = _targets(model, names, num_layers, local_path)
    num_missing = Counter(id(target.layer) for target in targets.values())
    num_bytes_read = 0
    for tensor in checkpoint.tensors():
        target = targets.pop(tensor.name, None)
        if target is not None:
            target.layer.load(target.part, target.parameter, tensor)
            num_missing[id(target.layer)] -= 1
            if not num_missing[id(target.layer)]:
                layer_loaded(target.layer)
        elif (
            tensor.name not in unused
            and tensor.name.rpartition(".")[0] not in elsewhere
            and not _IGNORED.search(tensor.name)
        ):
            raise ModelError(
                f"{checkpoint.folder} holds a tensor {tensor.name} (shape {tuple(tensor.shape)}) "
                "that config.json does not account for; its weights and config.json do not match."
            )
        num_bytes_read += tensor.num_bytes
        progress(min(num_bytes_read / checkpoint.num_bytes, 1.0), "reading weights")
    if targets:
        some = ", ".join(sorted(targets)[:3])
        raise ModelError(
            f"{checkpoint.folder} lacks {len(targets)} tensors that config.json asks for, among "
            f"them {some}; the download is incomplete or config.json belongs to another model."
        )


def _targets(
    model: nn.Module,
    names: Mapping[str, str],
    num_layers: int,
    local_path: Callable[[str], str | None],
) -> tuple[dict[str, _Target], set[str]]:
    """Every checkpoint tensor the model needs, by its name, and modules that are not in it."""
    targets, elsewhere = {}, set()
    for theirs, ours in names.items():
        for layer in range(num_layers if LAYER in theirs else 1):
            module_name = theirs.replace(LAYER, str(layer))
            whole_path, _, part = ours.replace(LAYER, str(layer)).partition(":")
            path = local_path(whole_path)
            if path is None:
                elsewhere.add(module_name)
                continue
            module = _find(model, path)
            for parameter in module.parameter_names() if module is not None else ():
                assert module is not None
                targets[f"{module_name}.{parameter}"] = _Target(module, part, parameter)
    return targets, elsewhere


def _find(model: nn.Module, path: str) -> LoadableLayer | None:
    """The layer at a path; None where this spec has no such layer."""
    module: nn.Module = model
    for name in path.split("."):
        child = module._modules.get(name)
        if child is None:
            return None
        module = child
    assert isinstance(module, LoadableLayer), f"{path} holds no weights"
    return module


@torch.no_grad()
def fill_with_dummy_weights(model: nn.Module, progress: Progress) -> None:
    """Small random matrices, norms of one and biases of zero: right shapes, no meaning."""
    parameters = dict(model.named_parameters())
    generators: dict[torch.device, torch.Generator] = {}
    for index, (name, parameter) in enumerate(parameters.items()):
        generator = generators.setdefault(
            parameter.device, torch.Generator(parameter.device).manual_seed(0)
        )
        if parameter.dim() > 1:
            parameter.normal_(0.0, _DUMMY_STD, generator=generator)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        progress((index + 1) / len(parameters), "making random weights")
