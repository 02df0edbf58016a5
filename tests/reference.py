"""What transformers says: greedy tokens and their log-probabilities, and prompts to ask with."""

from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.checkpoints import VOCAB_SIZE


def load_reference(checkpoint: Path) -> Any:
    """The checkpoint in float32 as transformers runs it by itself, never ending at EOS."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        checkpoint,
        dtype=torch.float32,
        local_files_only=True,
        attn_implementation="eager",  # some versions' default leaves out a model's soft cap
    )
    model.generation_config.eos_token_id = None
    return model.eval()


def greedy_reference(
    checkpoint: Path, prompts: list[list[int]], max_new_tokens: int
) -> tuple[list[list[int]], list[list[float]]]:
    """Tokens and log-probabilities of `generate` for each prompt, EOS ignored.

    Prompts of one length run as one batch, so that no padding is involved.
    """
    model = load_reference(checkpoint)
    by_length = defaultdict(list)
    for index, prompt in enumerate(prompts):
        by_length[len(prompt)].append(index)
    tokens: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    for length, indices in by_length.items():
        ids = torch.tensor([prompts[index] for index in indices])
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
                pad_token_id=0,
            )
        new = out.sequences[:, length:]
        scores = torch.stack(out.logits, dim=1).float().log_softmax(-1)
        best, second = scores.topk(2).values.unbind(-1)
        assert (best - second).min() > 2e-5, "rounding may decide: choose other weights or prompts"
        picked = scores.gather(-1, new.unsqueeze(-1)).squeeze(-1)
        for row, index in enumerate(indices):
            tokens[index] = new[row].tolist()
            logprobs[index] = picked[row].tolist()
    return tokens, logprobs


def mixed_reference(
    checkpoint: Path, num_prompts: int, max_new_tokens: int
) -> tuple[list[list[int]], list[list[float]]]:
    """`greedy_reference` of `mixed_prompts`, asked once per checkpoint for all tests."""
    assert num_prompts <= _NUM_MIXED
    assert max_new_tokens <= _MAX_NEW_TOKENS
    tokens, logprobs = _whole_mixed_reference(checkpoint)
    rows = slice(num_prompts)
    return (
        [row[:max_new_tokens] for row in tokens[rows]],
        [row[:max_new_tokens] for row in logprobs[rows]],
    )


_NUM_MIXED, _MAX_NEW_TOKENS = 64, 12


@cache
def _whole_mixed_reference(checkpoint: Path) -> tuple[list[list[int]], list[list[float]]]:
    return greedy_reference(checkpoint, mixed_prompts(_NUM_MIXED, VOCAB_SIZE), _MAX_NEW_TOKENS)


def mixed_prompts(num_prompts: int, vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Random prompts of a dozen lengths from 1 to 80 tokens; half of them share prefixes.

    Fewer prompts are the first of more.
    """
    generator = np.random.default_rng(seed)
    lengths = [1, 2, 5, 9, 16, 17, 30, 32, 33, 47, 64, 80]
    prefix = generator.integers(6, vocab_size, 40).tolist()
    prompts = []
    for index in range(num_prompts):
        length = lengths[index % len(lengths)]
        prompt = generator.integers(6, vocab_size, length).tolist()
        if index % 2:
            shared = min(len(prefix), length - 1)
            prompt[:shared] = prefix[:shared]
        prompts.append(prompt)
    return prompts
