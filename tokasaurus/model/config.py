"""What a native model is made of: the spec that a family reads from config.json.

A `ConfigReader` remembers what was read, so that a value nobody asked for is refused instead of
ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from tokasaurus.errors import ModelError
from tokasaurus.model.parallel import ALONE, ParallelContext

INERT_KEYS = frozenset(
    {
        "_attn_implementation",
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "attn_pdrop",
        "auto_map",
        "begin_suppress_tokens",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "embd_pdrop",
        "eos_token_id",
        "hidden_dropout",
        "id2label",
        "initializer_range",
        "is_decoder",
        "is_encoder_decoder",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "resid_pdrop",
        "return_dict",
        "sep_token_id",
        "tokenizer_class",
        "torch_dtype",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
    }
)
"""Keys of config.json that never change what a decoder computes at inference."""


class UnsupportedFeatureError(ModelError):
    """The native decoder does not cover a value of config.json; the transformers path may."""


class ConfigReader:
    """One level of config.json. Every key is read, inert, or reported by `finish`."""

    def __init__(self, values: Mapping[str, Any], where: str = "config.json") -> None:
        self._values = values
        self._where = where
        self._read: set[str] = set()

    def _get(self, key: str) -> Any:
        self._read.add(key)
        return self._values.get(key)

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise ModelError(f"{self._where}: {key} must be a positive integer, not {value!r}.")
        return value

    def natural(self, key: str, default: int) -> int:
        """Like `integer`, but 0 is fine."""
        return 0 if self._get(key) == 0 else self.integer(key, default)

    def optional_integer(self, key: str, default: int | None = None) -> int | None:
        """`default` only where the key is missing: an explicit null stays None."""
        if key not in self._values:
            return default
        return None if self._get(key) is None else self.integer(key)

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ModelError(f"{self._where}: {key} must be a number, not {value!r}.")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        return None if self._get(key) is None else self.number(key)

    def numbers(self, key: str) -> tuple[float, ...]:
        value = self._get(key)
        if not isinstance(value, list) or any(not isinstance(x, int | float) for x in value):
            raise ModelError(f"{self._where}: {key} must be a list of numbers, not {value!r}.")
        return tuple(float(x) for x in value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self._get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise ModelError(f"{self._where}: {key} must be true or false, not {value!r}.")
        return value

    def text(self, key: str, default: str) -> str:
        value = self._get(key)
        value = default if value is None else value
        if not isinstance(value, str):
            raise ModelError(f"{self._where}: {key} must be a string, not {value!r}.")
        return value

    def naturals(self, key: str) -> tuple[int, ...]:
        """A list of integers from 0 on; empty where there is none."""
        value = [] if self._get(key) is None else self._get(key)
        if not isinstance(value, list) or any(type(x) is not int or x < 0 for x in value):
            raise ModelError(f"{self._where}: {key} must be a list of indices, not {value!r}.")
        return tuple(value)

    def texts(self, key: str) -> tuple[str, ...] | None:
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, list) or any(not isinstance(x, str) for x in value):
            raise ModelError(f"{self._where}: {key} must be a list of strings, not {value!r}.")
        return tuple(value)

    def section(self, *keys: str) -> "ConfigReader | None":
        """The nested object under the first of `keys` that holds one."""
        found = None
        for key in keys:
            value = self._get(key)
            if not value:
                continue
            if not isinstance(value, dict):
                raise ModelError(f"{self._where}: {key} must be an object, not {value!r}.")
            found = found or ConfigReader(value, f"{self._where}, {key}")
        return found

    def only(self, key: str, value: Any) -> None:
        """A key that has no meaning but this value (or null)."""
        if self._get(key) not in (None, value):
            raise self.unsupported(key)

    def skip(self, *keys: str) -> None:
        """These have no effect for this family, whatever they say."""
        self._read.update(keys)

    def unsupported(self, key: str) -> UnsupportedFeatureError:
        return UnsupportedFeatureError(
            f"{self._where}: the native decoder does not cover {key}={self._values.get(key)!r}."
        )

    def finish(self) -> None:
        """Raise for the first key that was not read although it says something."""
        for key, value in self._values.items():
            says_nothing = value is None or value is False
            if key not in self._read and key not in INERT_KEYS and not says_nothing:
                raise self.unsupported(key)


RopeKind = Literal["default", "linear", "dynamic", "yarn", "llama3", "longrope"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """Rotary embedding, and how many positions it serves."""

    kind: RopeKind
    theta: float
    rotary_dim: int
    """Leading elements of each head that are rotated."""
    default_positions: int
    """Context length unless the user asks for more."""
    max_positions: int
    original_positions: int
    """Context length before the scaling."""
    factor: float = 1.0
    attention_factor: float = 1.0
    """Cosines and sines are multiplied by this."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MoESpec:
    """Mixtures of experts, in place of the MLP of some layers."""

    num_experts: int
    num_experts_per_token: int
    intermediate_size: int
    """Of one expert."""
    normalize_weights: bool
    """The weights of a token's experts sum to one."""
    shared_intermediate_size: int | None = None
    """Of an expert that sees every token, behind a sigmoid gate."""
    layers: frozenset[int]
    """The layers that have experts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """One decoder-only transformer with rotary positions."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: RopeSpec
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float
    mlp: Literal["gated", "plain"] = "gated"
    activation: str
    block: Literal["sequential", "parallel", "parallel_shared_norm"] = "sequential"
    """Parallel: attention and MLP read the same residual, through two norms or one."""
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """RMS norm over each query and key head before the rotation."""
    sliding_windows: tuple[int | None, ...]
    """One per layer."""
    tie_embeddings: bool = False
    moe: MoESpec | None = None
    """`intermediate_size` is that of the layers without experts."""

    def context_length(self, max_model_len: int | None) -> int:
        """The context to serve: the user's choice, within what the positions allow."""
        if max_model_len is None:
            return self.rope.default_positions
        if max_model_len > self.rope.max_positions:
            raise ModelError(
                f"max_model_len={max_model_len} exceeds the {self.rope.max_positions} positions "
                f"that this checkpoint covers; lower it."
            )
        return max_model_len


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Where and how a layer allocates its weights."""

    dtype: torch.dtype
    device: torch.device
    parallel: ParallelContext = ALONE
    """Which share of the weights is this worker's; layers shard themselves by it."""

    def empty(self, *shape: int) -> torch.nn.Parameter:
        data = torch.empty(shape, dtype=self.dtype, device=self.device)
        return torch.nn.Parameter(data, requires_grad=False)
