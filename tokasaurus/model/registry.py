"""Loads a model folder: picks the native decoder or the transformers path, and says which."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

from tokasaurus.config.model_files import ModelConfig, read_model_config
from tokasaurus.errors import ConfigError, ModelError
from tokasaurus.model.attention.backend import CausalModel
from tokasaurus.model.config import (
    ConfigReader,
    DecoderSpec,
    TensorSpec,
    UnsupportedFeatureError,
)
from tokasaurus.model.decoder import Decoder
from tokasaurus.model.families.experts import STACKED_WEIGHT
from tokasaurus.model.families.falcon import FALCON
from tokasaurus.model.families.family import Family
from tokasaurus.model.families.llama import LLAMA
from tokasaurus.model.families.mistral import MISTRAL
from tokasaurus.model.families.mixtral import MIXTRAL
from tokasaurus.model.families.phi3 import PHI3
from tokasaurus.model.families.qwen2 import QWEN2
from tokasaurus.model.families.qwen2_moe import QWEN2_MOE
from tokasaurus.model.families.qwen3 import QWEN3
from tokasaurus.model.families.qwen3_moe import QWEN3_MOE
from tokasaurus.model.kernels.decoder_packer import packing_while_loading
from tokasaurus.model.parallel import ALONE, ParallelContext
from tokasaurus.model.quantization.scheme import NO_QUANTIZATION, QuantizationScheme
from tokasaurus.model.transformers_path.model import load_transformers_model
from tokasaurus.model.transformers_path.support import WHAT_WORKS
from tokasaurus.model.weights.checkpoint import Checkpoint
from tokasaurus.model.weights.loading import Progress, fill_with_dummy_weights, load_weights

ModelPath = Literal["auto", "native", "transformers"]
LoadFormat = Literal["auto", "safetensors", "dummy"]

FAMILIES = {
    family.architecture: family
    for family in (
        LLAMA,
        MISTRAL,
        QWEN2,
        QWEN3,
        PHI3,
        FALCON,
        MIXTRAL,
        QWEN2_MOE,
        QWEN3_MOE,
    )
}
"""By the architecture that config.json names."""

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


def load_model(
    model_dir: Path,
    *,
    dtype: str,
    device: torch.device,
    model_path: ModelPath,
    load_format: LoadFormat,
    max_model_len: int | None,
    progress: Progress,
    parallel: ParallelContext = ALONE,
    quantization: QuantizationScheme = NO_QUANTIZATION,
) -> CausalModel:
    """The model in `model_dir`, on `device`, ready to run.

    "auto" takes the native decoder if it covers every value of config.json, else transformers'
    code. Raises ModelError when neither can run it, with the reasons, and ConfigError when it can't
    be spread over workers as `parallel` says; each loads its own share only. A native decoder's
    layers are quantised one by one as they arrive; `with_cpu_kernels` does the rest.
    """
    config = read_model_config(model_dir)
    chosen_dtype = choose_dtype(dtype, config, load_format)
    reason = "as asked"
    if model_path != "transformers":
        try:
            family = native_family(config)
            spec = read_family_spec(family, config)
        except UnsupportedFeatureError as error:
            if model_path == "native":
                raise
            reason = str(error)
        else:
            return load_native(
                family,
                spec,
                model_dir,
                dtype=chosen_dtype,
                device=device,
                load_format=load_format,
                max_model_len=max_model_len,
                progress=progress,
                parallel=parallel,
                quantization=quantization,
            )
    if not parallel.is_alone:
        raise ConfigError(
            f"tp_size and pp_size above 1 need a native family, and {config.architecture} would "
            f"run through transformers ({reason}); use dp_size for more replicas instead. "
            f"Native: {', '.join(FAMILIES)}."
        )
    try:
        return load_transformers_model(
            model_dir,
            config,
            dtype=chosen_dtype,
            device=device,
            is_dummy=load_format == "dummy",
            max_model_len=max_model_len,
            progress=progress,
        )
    except UnsupportedFeatureError as error:
        raise ModelError(
            f"{error} (Not run natively: {reason}) Native: {', '.join(FAMILIES)}. {WHAT_WORKS}"
        ) from error


def native_family(config: ModelConfig) -> Family:
    family = FAMILIES.get(config.architecture)
    if family is None:
        raise UnsupportedFeatureError(
            f"{config.architecture} has no native family; there are {', '.join(FAMILIES)}."
        )
    return family


def read_family_spec(family: Family, config: ModelConfig) -> DecoderSpec:
    """Raises UnsupportedFeatureError unless the spec says all that config.json says."""
    reader = ConfigReader(config.values)
    spec = family.read_spec(reader)
    reader.finish()
    return spec


def choose_dtype(dtype: str, config: ModelConfig, load_format: LoadFormat) -> torch.dtype:
    """ "auto" is the checkpoint's own dtype."""
    if dtype == "auto" and config.dtype is not None:
        dtype = config.dtype
    elif dtype == "auto" and load_format != "dummy":
        found = Checkpoint(config.folder).floating_dtype()
        dtype = str(found).removeprefix("torch.")
    elif dtype == "auto":
        dtype = "float32"
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype} can't be run; choose one of {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def load_native(
    family: Family,
    spec: DecoderSpec,
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    load_format: LoadFormat,
    max_model_len: int | None,
    progress: Progress,
    parallel: ParallelContext = ALONE,
    quantization: QuantizationScheme = NO_QUANTIZATION,
) -> Decoder:
    tensors = TensorSpec(dtype=dtype, device=device, parallel=parallel)
    context_length = spec.context_length(max_model_len)
    model = Decoder(spec, family.name, context_length, tensors).eval()
    if load_format == "dummy":
        fill_with_dummy_weights(model, progress)
        return model
    checkpoint = Checkpoint(folder)
    load_weights(
        model,
        _weight_names(family, spec, checkpoint),
        spec.num_layers,
        checkpoint,
        progress,
        unused=frozenset({family.head_name}) if spec.tie_embeddings else frozenset(),
        local_path=model.stage.local_path,
        layer_loaded=packing_while_loading(model, quantization),
    )
    return model


def _weight_names(family: Family, spec: DecoderSpec, checkpoint: Checkpoint) -> Mapping[str, str]:
    stacked = family.stacked_weight_names
    if stacked is not None and any(name.endswith(STACKED_WEIGHT) for name in checkpoint.names()):
        return stacked(spec)
    return family.weight_names(spec)
