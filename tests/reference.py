"""What transformers says: greedy tokens and their log-probabilities, and prompts to ask with."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch


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
        picked = scores.gather(-1, new.unsqueeze(-1)).squeeze(-1)
        for row, index in enumerate(indices):
            tokens[index] = new[row].tolist()
            logprobs[index] = picked[row].tolist()
    return tokens, logprobs


def mixed_prompts(num_prompts: int, vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Random prompts of a dozen lengths from 1 to 80 tokens; half of them share prefixes."""
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
