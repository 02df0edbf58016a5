"""Which part of a decoder a pipeline stage holds: consecutive layers, balanced by their cost."""

from dataclasses import dataclass

from tokasaurus.errors import ConfigError
from tokasaurus.model.config import DecoderSpec
from tokasaurus.model.parallel import ParallelContext


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The first one embeds tokens, the last one has the final norm and the head."""

    layers: range
    is_first: bool
    is_last: bool
    has_embedding: bool
    """The last stage has it too where it is the head's weight."""

    @classmethod
    def of(cls, spec: DecoderSpec, parallel: ParallelContext) -> "Stage":
        """Raises ConfigError when there are fewer layers than stages."""
        size, rank = parallel.pp_size, parallel.pp_rank
        if spec.num_layers < size:
            raise ConfigError(
                f"{spec.num_layers} layers can't be divided into pp_size={size} stages; lower "
                "pp_size, or use tp_size or dp_size."
            )
        counts = divide_layers(spec.num_layers, size, head_cost(spec))
        first = sum(counts[:rank])
        return cls(
            layers=range(first, first + counts[rank]),
            is_first=parallel.is_first_stage,
            is_last=parallel.is_last_stage,
            has_embedding=parallel.is_first_stage
            or (parallel.is_last_stage and spec.tie_embeddings),
        )

    def local_path(self, path: str) -> str | None:
        """Where a module of the whole decoder is in this stage's; None if it is in another's."""
        name, _, rest = path.partition(".")
        if name == "layers":
            index, _, rest = rest.partition(".")
            if int(index) not in self.layers:
                return None
            return f"layers.{int(index) - self.layers.start}.{rest}"
        is_here = self.has_embedding if name == "embedding" else self.is_last
        return path if is_here else None


def divide_layers(num_layers: int, num_stages: int, last_cost: float) -> list[int]:
    """Layers of each stage, at least one each; the last stage has `last_cost` layers' more work."""
    mean = (num_layers + last_cost) / num_stages
    last = round(mean - last_cost) if num_stages > 1 else num_layers
    last = min(max(last, 1), num_layers - num_stages + 1)
    rest = num_layers - last
    others = num_stages - 1
    return [rest // others + (stage < rest % others) for stage in range(others)] + [last]


def head_cost(spec: DecoderSpec) -> float:
    """Work of the head, in layers: by the weights that they multiply by. It counts half, because
    decodes go through it and most tokens of prompts don't."""
    attention = 2 * (spec.num_heads + spec.num_kv_heads) * spec.head_dim
    intermediate = spec.intermediate_size
    if spec.moe is not None:
        intermediate = spec.moe.intermediate_size * spec.moe.num_experts_per_token
    mlp = (3 if spec.mlp == "gated" else 2) * intermediate
    return spec.vocab_size / (attention + mlp) / 2
