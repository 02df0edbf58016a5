"""What a family is: how its config.json reads and what its weights are called."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tokasaurus.model.config import ConfigReader, DecoderSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """`read_spec` raises UnsupportedFeatureError for what the native decoder does not cover."""

    name: str
    architecture: str
    """The value of config.json's `architectures` that selects it."""
    read_spec: Callable[[ConfigReader], DecoderSpec]
    weight_names: Callable[[DecoderSpec], Mapping[str, str]]
    """Checkpoint module name -> "path" or "path:part" in the decoder; see `load_weights`."""
    stacked_weight_names: Callable[[DecoderSpec], Mapping[str, str]] | None = None
    """The same for checkpoints that hold all experts of a layer in one tensor."""
    head_name: str = "lm_head.weight"
    """May be in a checkpoint that ties it to the embedding; unused then."""
