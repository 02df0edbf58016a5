"""Traces: the same from the same seed, well formed, and each with the sharing it is about."""

import json
from pathlib import Path

import numpy as np
import pytest
from simulation.generators import GENERATORS
from simulation.traces import TraceError, find_trace
from simulation.workload import STOP_TOKEN, VOCAB_SIZE, Prompt, continued, text

SMALL = {
    "monkeys": ["prompts=3", "samples=5"],
    "chat": ["requests=40"],
    "documents": ["requests=20", "rate=2"],
    "agents": ["tasks=2", "rollouts=3"],
}


def flattened(name: str) -> list[Prompt]:
    """All prompts, follow-ups included, as if every one ended a second after its arrival."""
    todo = list(find_trace(name, SMALL[name])())
    prompts = []
    while todo:
        prompt = todo.pop()
        prompts.append(prompt)
        if prompt.follow_up is not None:
            following = prompt.follow_up(prompt.arrival_seconds + 1)
            todo += [] if following is None else [following]
    return prompts


def test_every_generator_is_tested() -> None:
    assert SMALL.keys() == GENERATORS.keys()


@pytest.mark.parametrize("name", SMALL)
def test_same_seed_same_trace(name: str) -> None:
    for one, other in zip(flattened(name), flattened(name), strict=True):
        assert one.arrival_seconds == other.arrival_seconds
        assert (one.prompt_ids == other.prompt_ids).all()
        assert (one.output_lens == other.output_lens).all()
        assert (one.output_keys == other.output_keys).all()


@pytest.mark.parametrize("name", SMALL)
def test_prompts_are_well_formed(name: str) -> None:
    for prompt in flattened(name):
        assert prompt.prompt_ids.dtype == np.int32
        assert prompt.prompt_ids.size > 0
        assert prompt.prompt_ids.min() >= 0
        assert prompt.prompt_ids.max() < VOCAB_SIZE
        assert prompt.output_lens.shape == prompt.output_keys.shape
        assert prompt.output_lens.min() >= 1
        assert prompt.max_tokens >= 1
    arrivals = [p.arrival_seconds for p in find_trace(name, SMALL[name])()]
    assert arrivals == sorted(arrivals)


@pytest.mark.parametrize("name", ["chat", "agents", "documents"])
def test_follow_ups_continue_what_was_generated(name: str) -> None:
    num_checked = 0
    for prompt in find_trace(name, SMALL[name])():
        following = prompt.follow_up(7.0) if prompt.follow_up else None
        if following is None:
            continue
        num_output = min(int(prompt.output_lens[0]), prompt.max_tokens)
        context = continued(prompt.prompt_ids, int(prompt.output_keys[0]), num_output)
        assert following.arrival_seconds >= 7.0
        assert following.prompt_ids.size > context.size
        assert (following.prompt_ids[: context.size] == context).all()
        assert context[-1] == STOP_TOKEN
        num_checked += 1
    assert num_checked


def test_monkeys_samples_share_a_prompt_and_prompts_their_examples() -> None:
    first, second, _ = find_trace("monkeys", SMALL["monkeys"])()
    assert first.output_lens.size == 5
    assert np.unique(first.output_keys).size == 5
    assert (first.prompt_ids[:600] == second.prompt_ids[:600]).all()


@pytest.mark.parametrize("streamed", [0.0, 0.5, 1.0])
def test_a_share_of_the_conversations_streams(streamed: float) -> None:
    prompts = list(find_trace("chat", ["requests=400", f"streamed={streamed}"])())
    share = sum(prompt.is_streamed for prompt in prompts) / len(prompts)
    assert share == pytest.approx(streamed, abs=0.02)
    following = [(p, p.follow_up(1.0)) for p in prompts if p.follow_up is not None]
    assert all(p.is_streamed == f.is_streamed for p, f in following if f is not None)


def test_texts_differ() -> None:
    assert (text(1, 0, 1000) != text(2, 0, 1000)).mean() > 0.99
    assert (text(1, 5, 1000) == text(1, 0, 1000)[5:]).all()
    assert np.unique(text(3, 0, 10_000)).size > 9000


def test_reads_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    entries = [
        {"arrival_seconds": 2.0, "prompt_ids": [1, 2, 3], "output_tokens": 4, "max_tokens": 9},
        {
            "arrival_seconds": 1.0,
            "prompt_tokens": 50,
            "prefix": "system",
            "prefix_tokens": 20,
            "output_tokens": [5, 6],
            "max_tokens": 8,
            "priority": 2,
            "stream": True,
        },
        {
            "prompt_tokens": 30,
            "prefix": "system",
            "prefix_tokens": 20,
            "output_tokens": 1,
            "max_tokens": 8,
        },
    ]
    path.write_text("\n\n".join(map(json.dumps, entries)))
    make = find_trace(str(path), [])
    first, second, third = make()
    assert [p.arrival_seconds for p in (first, second, third)] == [0.0, 1.0, 2.0]
    assert (first.prompt_ids[:20] == second.prompt_ids[:20]).all()
    assert second.output_lens.tolist() == [5, 6]
    assert second.priority == 2
    assert [p.is_streamed for p in (first, second, third)] == [False, True, False]
    assert third.prompt_ids.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        '{"prompt_tokens": 3}',
        '{"prompt_tokens": 0, "output_tokens": 3, "max_tokens": 3}',
        '{"prompt_tokens": 3, "output_tokens": [], "max_tokens": 3}',
    ],
)
def test_says_which_line_is_wrong(tmp_path: Path, line: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n" + line)
    with pytest.raises(TraceError, match="line 2"):
        find_trace(str(path), [])()


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("nowhere.jsonl", [], "neither a file nor one of monkeys"),
        ("chat", ["request=3"], "with a key of requests"),
        ("chat", ["requests=many"], "whole number"),
        ("chat", ["rate=many"], "a number"),
    ],
)
def test_refuses_what_it_does_not_know(name: str, words: list[str], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        find_trace(name, words)
