"""Asks the trained model random questions of each kind and counts the right answers."""

import random

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from demo_model.tokenizer import IM_END, IM_START
from demo_model.transcripts import SKILLS

MAX_ANSWER_TOKENS = 64


@torch.no_grad()
def answer(model: LlamaForCausalLM, tokenizer: Tokenizer, question: str) -> str:
    """The greedy answer to a question that is alone in its chat."""
    prompt = f"{IM_START}user\n{question}{IM_END}\n{IM_START}assistant\n"
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=MAX_ANSWER_TOKENS,
        do_sample=False,
        eos_token_id=tokenizer.token_to_id(IM_END),
        pad_token_id=tokenizer.token_to_id(IM_END),
    )
    text = tokenizer.decode(output[0, ids.shape[1] :].tolist(), skip_special_tokens=False)
    return text.removesuffix(IM_END)


def score(
    model: LlamaForCausalLM, tokenizer: Tokenizer, num_questions: int, seed: int
) -> dict[str, int]:
    """How many of so many random questions of each kind are answered to the letter."""
    rng = random.Random(seed)
    scores = {}
    for skill in SKILLS:
        exchanges = [skill(rng) for _ in range(num_questions)]
        right = sum(answer(model, tokenizer, asked) == wanted for asked, wanted in exchanges)
        scores[skill.__name__.replace("_", " ")] = right
    return scores
