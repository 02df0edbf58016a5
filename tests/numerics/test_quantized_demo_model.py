"""The demo model answers with quantised weights as it does without."""

import pytest
import torch
from tokenizers import Tokenizer

from tests.models import load
from tests.numerics.batch_driver import generate
from tests.numerics.test_demo_model import QUESTIONS
from tokasaurus.demo_model import DEMO_MODEL_DIR
from tokasaurus.model.quantization.scheme import quantization_scheme

MAX_ANSWER_TOKENS = 40


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL_DIR / "tokenizer.json"))
    return [
        tokenizer.encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n").ids
        for question, _ in QUESTIONS
    ]


@pytest.fixture(scope="module")
def reference(prompts: list[list[int]]) -> list[list[int]]:
    """What float32 without quantisation says, up to its end of turn."""
    return answers(generate(load(DEMO_MODEL_DIR), prompts, MAX_ANSWER_TOKENS)[0])


def answers(outputs: list[list[int]]) -> list[list[int]]:
    end = Tokenizer.from_file(str(DEMO_MODEL_DIR / "tokenizer.json")).token_to_id("<|im_end|>")
    return [ids[: ids.index(end)] if end in ids else ids for ids in outputs]


@pytest.mark.parametrize(
    ("quantization", "least_share"),
    [("int8", 0.95), ("int8_weight_only", 0.95), ("int4_weight_only", 0.8)],
)
@torch.inference_mode()
def test_answers_stay(
    prompts: list[list[int]], reference: list[list[int]], quantization: str, least_share: float
) -> None:
    outputs, _ = generate(
        load(DEMO_MODEL_DIR, dtype="bfloat16"),
        prompts,
        MAX_ANSWER_TOKENS,
        attention_backend="cpu",
        quantization=quantization_scheme(quantization, None),
    )
    same = [a == b for a, b in zip(answers(outputs), reference, strict=True)]
    assert sum(same) >= least_share * len(same)
