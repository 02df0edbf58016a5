"""`best_of`: the likeliest of the samples that were drawn for each prompt."""

from collections.abc import Sequence

from tokasaurus.server.generation import Generation


def best_samples(generations: Sequence[Generation], *, num_drawn: int, n: int) -> list[Generation]:
    """Of finished samples, `num_drawn` per prompt in prompt order, the best `n` of each prompt.

    Best is the highest log-probability per token, as OpenAI defines it; the best come first.
    """
    return [
        best
        for start in range(0, len(generations), num_drawn)
        for best in sorted(generations[start : start + num_drawn], key=_mean_logprob, reverse=True)[
            :n
        ]
    ]


def _mean_logprob(generation: Generation) -> float:
    num_tokens = len(generation.output_ids)
    return generation.cumulative_logprob / num_tokens if num_tokens else 0.0
