"""A transformers model as a `CausalModel`: its own code and weights, our paged attention.

Shapes: T tokens of a step, S sampled rows, D hidden size, V vocabulary.
"""

import copy
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tokasaurus.config.model_files import ModelConfig
from tokasaurus.errors import ModelError
from tokasaurus.model.attention.backend import AttentionBackend, AttentionLayer
from tokasaurus.model.transformers_path import interface, self_check
from tokasaurus.model.transformers_path.discovery import discover_attention_layers
from tokasaurus.model.transformers_path.support import causal_class, context_length
from tokasaurus.model.weights.checkpoint import weight_files
from tokasaurus.model.weights.loading import Progress


class TransformersModel:
    """`model` is a causal language model on its device; it must not be used elsewhere.

    Raises UnsupportedFeatureError for what paged attention does not compute.
    """

    def __init__(self, model: Any, max_model_len: int) -> None:
        text_config = model.config.get_text_config(decoder=True)
        references = self_check.reference_logits(model, text_config.vocab_size)
        layers = discover_attention_layers(model, text_config.num_hidden_layers, max_model_len)
        self._step = interface.CurrentStep()
        for module, spec in layers:
            module.paged_layer = interface.PagedLayer(spec, self._step)  # type: ignore[assignment]
        interface.register()
        model.set_attn_implementation(interface.PAGED)
        self.attention_layers: tuple[AttentionLayer, ...] = tuple(spec for _, spec in layers)
        self.vocab_size: int = text_config.vocab_size
        self.max_model_len = max_model_len
        self.dtype: torch.dtype = model.dtype
        self.path = f"transformers {type(model).__name__}"
        self._base = model.base_model
        self._head = _head_of(model)
        self_check.check_against(self, references, model.device)

    def forward(
        self, input_ids_T: torch.Tensor, positions_T: torch.Tensor, attention: AttentionBackend
    ) -> torch.Tensor:
        self._step.backend = attention
        try:
            outputs = self._base(
                input_ids=input_ids_T[None].long(),
                position_ids=positions_T[None].long(),
                use_cache=False,
                return_dict=True,
            )
        finally:
            self._step.backend = None
        return outputs.last_hidden_state[0]

    def logits(self, hidden_SD: torch.Tensor) -> torch.Tensor:
        outputs = self._head(inputs_embeds=hidden_SD[None], use_cache=False, return_dict=True)
        return outputs.logits[0].float()

    def linear_layers(self) -> list[tuple[torch.nn.Linear, list[torch.nn.Module]]]:
        """Its plain linear layers, for kernels that compute them; each with the other modules that
        use its weight."""
        modules = {id(m): m for part in (self._base, self._head) for m in part.modules()}
        users: dict[int, list[torch.nn.Module]] = defaultdict(list)
        for module in modules.values():
            for parameter in module.parameters(recurse=False):
                users[id(parameter)].append(module)
        return [
            (module, [user for user in users[id(module.weight)] if user is not module])
            for module in modules.values()
            if type(module) is torch.nn.Linear
        ]

    def other_matrices(self) -> list[str]:
        """Names of the matrices in neither plain linear layers nor embeddings."""
        return [
            f"{name}.{parameter_name}"
            for name, module in self._base.named_modules()
            if not isinstance(module, torch.nn.Embedding) and type(module) is not torch.nn.Linear
            for parameter_name, parameter in module.named_parameters(recurse=False)
            if parameter.dim() > 1
        ]


class _BaseOutputs:
    """A base model's outputs that hold nothing but the hidden states."""

    def __init__(self, last_hidden_state: torch.Tensor) -> None:
        self.last_hidden_state = last_hidden_state

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]


class _Identity(torch.nn.Module):
    """Stands in for the base model (or its decoder): it returns the hidden states it is given."""

    @property
    def decoder(self) -> "_Identity":
        return self

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> _BaseOutputs:
        return _BaseOutputs(inputs_embeds)


def _head_of(model: Any) -> Any:
    """The model's own code from final hidden states to logits, whatever it scales or caps there:
    a second view of the same modules, without the base model."""
    head = copy.copy(model)
    head._modules = {**model._modules, model.base_model_prefix: _Identity()}
    return head


def load_transformers_model(
    folder: Path,
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    is_dummy: bool,
    max_model_len: int | None,
    progress: Progress,
) -> TransformersModel:
    """Raises ModelError when transformers can't load it or paged attention can't run it."""
    model_class = causal_class(config)
    max_positions = context_length(config, max_model_len)
    if not is_dummy:
        weight_files(folder)
    progress(0.0, "reading weights through transformers")
    try:
        with _quiet():
            model = _load(model_class, folder, dtype, device, is_dummy)
        progress(1.0, "reading weights through transformers")
        return TransformersModel(model.eval().requires_grad_(False), max_positions)
    except torch.OutOfMemoryError:
        raise
    except _ERRORS_OF_TRANSFORMERS as error:
        raise ModelError(f"transformers can't load or run {folder}: {error}") from error


_ERRORS_OF_TRANSFORMERS = (
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What its code raises for a config.json or weights that don't fit it."""


def _load(
    model_class: Any, folder: Path, dtype: torch.dtype, device: torch.device, is_dummy: bool
) -> Any:
    if is_dummy:
        config = model_class.config_class.from_pretrained(folder, local_files_only=True)
        with device:
            return model_class._from_config(config, dtype=dtype, attn_implementation="eager")
    model, report = model_class.from_pretrained(
        folder,
        dtype=dtype,
        device_map={"": device},
        attn_implementation="eager",
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} tensors, among them {', '.join(missing[:3])}; the "
            "download is incomplete or config.json belongs to another model."
        )
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers' own progress bars off; ours tell people what happens."""
    from transformers.utils import logging

    were_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_on:
            logging.enable_progress_bar()
