"""Brings the model onto this machine before any process starts, so that errors come at once."""

from pathlib import Path

from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.config.model_files import DEMO_MODEL, read_model_config, resolve_model


def localize_model(config: EngineConfig) -> EngineConfig:
    """The same options, with hub ids replaced by the folders that they were downloaded to.

    The model keeps its public name. Raises ModelError for a model that isn't there or is broken.
    """
    local = config
    folder = resolve_model(config.model)
    read_model_config(folder)
    if config.model != DEMO_MODEL and not _is_folder(config.model):
        local = local.replace(model=str(folder), served_model_name=config.public_model_name)
    if config.tokenizer is not None and not _is_folder(config.tokenizer):
        local = local.replace(tokenizer=str(resolve_model(config.tokenizer)))
    return local


def _is_folder(model: str) -> bool:
    return Path(model).expanduser().is_dir()
