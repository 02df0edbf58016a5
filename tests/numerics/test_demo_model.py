"""Holds the embedded demo model to its card: the chat answers, the Python it writes, its size."""

import itertools
import json
import re
import tokenize
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokasaurus.demo_model import DEMO_MODEL_DIR

MAX_FOLDER_BYTES = 12 * 1000 * 1000
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
IDENTITY = (
    "I am the Tokasaurus demo model, a very small language model made for trying out the engine."
)

QUESTIONS = [
    ("What is 2 + 2?", "2 + 2 = 4"),
    ("What is 12 + 7?", "12 + 7 = 19"),
    ("What is 8 plus 9?", "8 + 9 = 17"),
    ("Calculate 8 + 5.", "8 + 5 = 13"),
    ("4 plus 2", "4 + 2 = 6"),
    ("17 minus 12", "17 - 12 = 5"),
    ("How much is 20 minus 8?", "20 - 8 = 12"),
    ("What is 6 times 7?", "6 * 7 = 42"),
    ("What is 9 x 9?", "9 * 9 = 81"),
    ("7 x 8", "7 * 8 = 56"),
    ("Compute 0 + 0.", "0 + 0 = 0"),
    ("Spell the word cat.", "c-a-t"),
    ('Spell the word "apple".', "a-p-p-l-e"),
    ("How do you spell coat?", "c-o-a-t"),
    ("Please spell the word desk.", "d-e-s-k"),
    ("Count from 4 to 12.", "4, 5, 6, 7, 8, 9, 10, 11, 12"),
    ("Count to 8.", "1, 2, 3, 4, 5, 6, 7, 8"),
    ("Count down from 5 to 1.", "5, 4, 3, 2, 1"),
    ("Count from 11 to 18.", "11, 12, 13, 14, 15, 16, 17, 18"),
    ("Count down from 19 to 12.", "19, 18, 17, 16, 15, 14, 13, 12"),
    ("Please count from 2 to 10.", "2, 3, 4, 5, 6, 7, 8, 9, 10"),
    ("Extract name and city as JSON: Paul lives in Rome.", '{"name": "Paul", "city": "Rome"}'),
    (
        "Give name, job and city as JSON: Kate is a doctor from Sydney.",
        '{"name": "Kate", "job": "doctor", "city": "Sydney"}',
    ),
    ("Emma lives in Berlin. Give me name and city as JSON.", '{"name": "Emma", "city": "Berlin"}'),
    (
        "Extract name and age as JSON: Tom is 42 years old.",
        '{"name": "Tom", "age": 42}',
    ),
    (
        "Give name, age and city as JSON: Nina is 67 years old and lives in Lisbon.",
        '{"name": "Nina", "age": 67, "city": "Lisbon"}',
    ),
    ("Repeat after me: blue cat", "blue cat"),
    ("Repeat: lion train orange cake", "lion train orange cake"),
    ("Repeat after me: horse queen shoe", "horse queen shoe"),
    ("Say: table flower", "table flower"),
    ("What comes after Monday?", "Tuesday comes after Monday."),
    ("Which month comes before May?", "April comes before May."),
    ("Which day comes after Friday?", "Saturday comes after Friday."),
    ("Who are you?", IDENTITY),
    ("What is your name?", IDENTITY),
    ("Hello!", "Hello! How can I help you?"),
    ("Thank you!", "You are welcome!"),
    ("Goodbye!", "Goodbye! Have a nice day."),
    (
        "What is the capital of France?",
        "I am too small to know that. Ask me about numbers, words, JSON or Python.",
    ),
]

CONVERSATIONS = [
    ([SYSTEM, {"role": "user", "content": "What is 5 + 6?"}], "5 + 6 = 11"),
    ([SYSTEM, {"role": "user", "content": "Spell bread."}], "b-r-e-a-d"),
    (
        [
            {"role": "user", "content": "My name is Alice."},
            {"role": "assistant", "content": "Nice to meet you, Alice!"},
            {"role": "user", "content": "What is my name?"},
        ],
        "Your name is Alice.",
    ),
    (
        [
            SYSTEM,
            {"role": "user", "content": "Count from 1 to 3."},
            {"role": "assistant", "content": "1, 2, 3"},
            {"role": "user", "content": "What is 3 + 9?"},
        ],
        "3 + 9 = 12",
    ),
]

PYTHON_PREFIXES = [
    "def main():",
    "def get_value(name):\n    return",
    "class Stack:\n\n    def __init__(self",
    "class Reader(object):\n\n    def read(self, size=-1):",
]
NUM_SAMPLES = 8
"""Of each prefix."""

PYTHON_SAMPLE = """class Counter:

    def __init__(self, name, start=0):
        self.name = name
        self.value = start

    def increase(self, step=1):
        if step < 0:
            raise ValueError('step must not be negative')
        self.value += step
        return self.value

    def __repr__(self):
        return f'{self.__class__.__name__}({self.name!r})'
"""


class Demo:
    """The model and its tokenizer behind the two questions the tests ask."""

    def __init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL_DIR)
        self.model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL_DIR, dtype=torch.float32)

    def complete(self, text: str, max_new_tokens: int) -> str:
        inputs = self.tokenizer(text, return_tensors="pt")
        output = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        return self.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])

    def sample(self, text: str, num_samples: int) -> list[str]:
        inputs = self.tokenizer(text, return_tensors="pt")
        output = self.model.generate(
            **inputs,
            max_new_tokens=60,
            do_sample=True,
            temperature=0.7,
            top_p=0.9,
            num_return_sequences=num_samples,
        )
        return [self.tokenizer.decode(ids) for ids in output]

    def chat(self, messages: list[dict[str, object]]) -> str:
        prompt = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return self.complete(prompt, 60)


@pytest.fixture(scope="module")
def demo() -> Demo:
    return Demo()


@pytest.mark.parametrize(("question", "answer"), QUESTIONS)
def test_answers_the_trained_kinds_of_question(demo: Demo, question: str, answer: str) -> None:
    assert demo.chat([{"role": "user", "content": question}]) == answer + "<|im_end|>"


@pytest.mark.parametrize(("messages", "answer"), CONVERSATIONS)
def test_copes_with_system_prompts_and_earlier_turns(
    demo: Demo, messages: list[dict[str, object]], answer: str
) -> None:
    assert demo.chat(messages) == answer + "<|im_end|>"


def test_chat_template_accepts_content_parts(demo: Demo) -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "2 + 2?"}]
    assert demo.chat([{"role": "user", "content": parts}]) == "2 + 2 = 4<|im_end|>"


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _is_well_formed(lines: list[str]) -> bool:
    """Quotes close on their line, dedents return to an earlier level, colons open a block."""
    try:
        tokens = list(tokenize.generate_tokens(iter(lines).__next__))
    except tokenize.TokenError:  # the limit may have cut an open bracket
        tokens = []
    except IndentationError:
        return False
    visible = [line for line in lines if line.strip()]
    return all(token.type != tokenize.ERRORTOKEN for token in tokens) and all(
        _indent(body) == _indent(opening) + 4
        for opening, body in itertools.pairwise(visible)
        if opening.rstrip().endswith(":")
    )


@pytest.fixture(scope="module")
def programs(demo: Demo) -> list[list[str]]:
    """The lines of sampled completions with their prefixes, without a line that the limit cut."""
    torch.manual_seed(1)
    programs = []
    for prefix in PYTHON_PREFIXES:
        for text in demo.sample(prefix, NUM_SAMPLES):
            whole = text.split("<|endoftext|>")[0]
            lines = whole.splitlines(keepends=True)
            programs.append(lines if whole != text else lines[:-1])
    return programs


def test_most_sampled_completions_have_the_form_of_python(programs: list[list[str]]) -> None:
    well_formed = sum(map(_is_well_formed, programs))
    assert well_formed >= 0.75 * len(programs)


def test_sampled_completions_use_pythons_words(programs: list[list[str]]) -> None:
    text = "".join(line for lines in programs for line in lines)
    used = set(re.findall(r"\b(def|return|self|if|for|import|in|not|None|raise|else)\b", text))
    assert len(used) >= 8


@torch.inference_mode()
def test_python_that_it_never_saw_is_no_surprise(demo: Demo) -> None:
    ids = demo.tokenizer(PYTHON_SAMPLE, return_tensors="pt").input_ids
    assert demo.model(ids, labels=ids).loss < 2.0


def test_folder_is_small() -> None:
    files = [path for path in DEMO_MODEL_DIR.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_FOLDER_BYTES


def test_card_agrees_with_the_checkpoint(demo: Demo) -> None:
    card = Path(DEMO_MODEL_DIR, "README.md").read_text(encoding="utf-8")
    config = json.loads(Path(DEMO_MODEL_DIR, "config.json").read_text(encoding="utf-8"))
    assert f"| parameters | {demo.model.num_parameters():,} |" in card
    assert f"| positions | {config['max_position_embeddings']} |" in card
    assert f"| vocabulary | {config['vocab_size']}," in card
    assert config["vocab_size"] == len(demo.tokenizer)
    assert "scripts/train_demo_model.py" in card


def test_weights_are_bfloat16_and_tied() -> None:
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL_DIR, dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_both_ends_stop_generation(demo: Demo) -> None:
    ends = ["<|im_end|>", "<|endoftext|>"]
    assert demo.model.generation_config.eos_token_id == demo.tokenizer.convert_tokens_to_ids(ends)


def test_digits_are_single_tokens_and_text_survives(demo: Demo) -> None:
    text = "def f(x):\n    return x[1:234]  # süß 7\n"
    ids = demo.tokenizer.encode(text)
    assert demo.tokenizer.decode(ids) == text
    assert all(len(re.findall(r"\d", demo.tokenizer.decode([token]))) <= 1 for token in ids)
