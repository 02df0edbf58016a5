"""What `quantization=...` makes of a model's weights, and where it can't be honoured."""

from dataclasses import dataclass
from enum import IntEnum

from tokasaurus.errors import ConfigError

DEFAULT_GROUP_SIZE = 32


class WeightKind(IntEnum):
    """How the CPU kernels hold a weight; the numbers are those of `Format` in csrc/linear.h."""

    PLAIN = 0
    """As the activations: bfloat16 or float32."""
    INT8 = 1
    """int8 with a scale per output; activations are rounded to int8 with a scale per token."""
    INT8_WEIGHTS = 2
    """int8 with a scale per output; activations keep 16 bits or more."""
    INT4_WEIGHTS = 3
    """4 bits with a scale and a minimum per output and group of inputs; activations as above."""


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How one weight is held."""

    kind: WeightKind = WeightKind.PLAIN
    group_size: int = 0
    """Inputs that share a scale and a minimum; INT4_WEIGHTS alone."""

    @property
    def arguments(self) -> tuple[int, int]:
        """As the kernels' operators take it."""
        return int(self.kind), self.group_size


PLAIN = WeightFormat()


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationScheme:
    """Formats of a model's weights. Embeddings that are not the head's weight, routers of experts,
    norms and biases stay as they are."""

    name: str = "none"
    layers: WeightFormat = PLAIN
    head: WeightFormat = PLAIN
    """Of the language-model head, and of the embedding that it is tied to."""

    @property
    def is_plain(self) -> bool:
        return self.layers == PLAIN

    def check_place(self, device_type: str, cpu_kernels: bool) -> None:
        """Before anything is read; what else speaks against a scheme shows when weights are packed.

        Raises ConfigError where nothing could run it.
        """
        if self.is_plain:
            return
        if device_type != "cpu":
            raise self.refuse(f"runs on CPUs alone, not on {device_type}", "set device=cpu")
        if not cpu_kernels:
            raise self.refuse("needs the CPU kernels", "set cpu_kernels=T")

    def refuse(self, reason: str, remedy: str) -> ConfigError:
        """The error that says why this scheme can't run here."""
        return ConfigError(f"quantization={self.name} {reason}; {remedy} or leave it at none.")


NO_QUANTIZATION = QuantizationScheme()


def quantization_scheme(quantization: str, group_size: int | None) -> QuantizationScheme:
    """The scheme that the options name. The head never gets fewer than 8 bits: each token's own
    logit depends on one row of it."""
    if quantization == "int8":
        int8 = WeightFormat(WeightKind.INT8)
        return QuantizationScheme(name=quantization, layers=int8, head=int8)
    int8_weights = WeightFormat(WeightKind.INT8_WEIGHTS)
    if quantization == "int8_weight_only":
        return QuantizationScheme(name=quantization, layers=int8_weights, head=int8_weights)
    if quantization == "int4_weight_only":
        int4_weights = WeightFormat(WeightKind.INT4_WEIGHTS, group_size or DEFAULT_GROUP_SIZE)
        return QuantizationScheme(name=quantization, layers=int4_weights, head=int8_weights)
    assert quantization == "none", quantization
    return NO_QUANTIZATION
