"""Masks equal what trying every token says; ends come exactly where the grammar may end."""

import json
import random
import re
from collections.abc import Callable

import numpy as np
import pytest

from tests.unit.server.tiny_server import TOKENIZER
from tests.unit.worker.conftest import PAGE_SIZE
from tests.unit.worker.step_driver import DrivenSequence, StepDriver
from tokasaurus.ipc.messages.to_manager import TokenSampling
from tokasaurus.worker.grammar_tokens import GrammarState, GrammarTokens
from tokasaurus.worker.torch_runner import TorchRunner

VOCAB_SIZE = 450
END = 1
TEXTS = [TOKENIZER.token_bytes(i) for i in range(VOCAB_SIZE)]


@pytest.fixture(scope="module")
def tokens() -> GrammarTokens:
    return GrammarTokens(TOKENIZER, VOCAB_SIZE)


def allowed(state: GrammarState) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(state.mask, bitorder="little")).tolist())


def walk(state: GrammarState, seed: int, longest: int = 60) -> bytes | None:
    """A random text; None if it did not end."""
    generator = random.Random(seed)
    text = b""
    for _ in range(longest):
        choices = allowed(state)
        assert choices, "nothing can be drawn"
        token = END if END in choices and generator.random() < 0.3 else generator.choice([*choices])
        state.consume([token])
        state.update()
        if token == END:
            assert state.must_end
            assert allowed(state) == {END}
            return text
        text += TEXTS[token]
    return None


def state_of(tokens: GrammarTokens, grammar: str) -> GrammarState:
    state = GrammarState(tokens, grammar, (END,))
    state.update()
    return state


def matches(pattern: str, text: bytes) -> bool:
    try:
        return re.fullmatch(pattern, text.decode()) is not None
    except UnicodeDecodeError:
        return False


REST_OF_A_CHARACTER = [b"", b"\xa9", *(byte * n for byte in (b"\x80", b"\xbf") for n in (1, 2, 3))]


def may_match(pattern: str, start: bytes) -> bool:
    """Whether a text matches that starts so: for the patterns below, one of these ends."""
    ends = [rest + end for rest in REST_OF_A_CHARACTER for end in (b"", b"a", b"x", "é".encode())]
    return any(matches(pattern, start + end) for end in ends)


@pytest.mark.parametrize("pattern", ["[a-c]{1,3}", "(ab|a)*c?", "o.*x|[0-9]+", "é{2}"])
def test_masks_equal_trying_every_token(tokens: GrammarTokens, pattern: str) -> None:
    """A token may come if, and only if, some text that matches goes on with it."""
    prefix = b""
    state = state_of(tokens, f"start: /{pattern}/")
    for token in [None, *TOKENIZER.encode("a")]:
        if token is not None:
            if token not in allowed(state):
                break
            state.consume([token])
            state.update()
            prefix += TEXTS[token]
        found = allowed(state)
        assert (END in found) == matches(pattern, prefix)
        texts = {i: prefix + TEXTS[i] for i in range(3, VOCAB_SIZE) if TEXTS[i]}
        assert found - {END} == {i for i, text in texts.items() if may_match(pattern, text)}


@pytest.mark.parametrize("seed", range(20))
def test_random_walks_match(tokens: GrammarTokens, seed: int) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "yy"]}, "b": {"type": "boolean"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    text = walk(state_of(tokens, f"start: %json {json.dumps(schema)}"), seed, 200)
    if text is not None:
        value = json.loads(text)
        assert set(value) == {"a", "b"}
        assert value["a"] in ("x", "yy")
        assert isinstance(value["b"], bool)
    choices = ["yes", "no", 'say "no"\n', "日本 🙂"]
    grammar = "start: " + " | ".join(map(json.dumps, choices))
    text = walk(state_of(tokens, grammar), seed)
    assert text is not None
    assert text.decode() in choices


def test_no_end_before_a_special_token(tokens: GrammarTokens) -> None:
    state = state_of(tokens, 'start: /[a-z]*/ <[0]> "b"')
    for token in (None, *TOKENIZER.encode("a")):
        if token is not None:
            state.consume([token])
            state.update()
        assert END not in allowed(state)
        assert 0 in allowed(state)
    state.consume([0, *TOKENIZER.encode("b")])
    state.update()
    assert allowed(state) == {END}


def test_restored_state_equals_the_one_that_went_on(tokens: GrammarTokens) -> None:
    grammar = r'start: %json {"type": "object", "additionalProperties": {"type": "integer"}}'
    state = state_of(tokens, grammar)
    drawn: list[int] = []
    for seed in range(15):
        drawn.append(random.Random(seed).choice(sorted(allowed(state) - {END}) or [END]))
        state.consume(drawn[-1:])
        state.update()
        again = GrammarState(tokens, grammar, (END,))
        again.consume(drawn)
        again.update()
        assert (again.mask == state.mask).all()
        assert again.must_end == state.must_end


def test_a_broken_grammar_allows_nothing(tokens: GrammarTokens) -> None:
    state = state_of(tokens, "start: nowhere")
    assert allowed(state) == set()
    state.consume([5])
    state.update()
    assert allowed(state) == set()


def test_compiled_grammars_are_kept(tokens: GrammarTokens) -> None:
    state_of(tokens, 'start: "kept"')
    compiled = tokens._compiled['start: "kept"']
    state_of(tokens, 'start: "kept"')
    assert tokens._compiled['start: "kept"'] is compiled
    for i in range(200):
        tokens.matcher(f'start: "{i}"')
    assert len(tokens._compiled) == 128


GRAMMAR = 'start: "a" /[b-d]{2,6}/ "."'


def grammatical(seed: int, **fields: object) -> TokenSampling:
    return TokenSampling(seed=seed, grammar=GRAMMAR, end_token_ids=(END,), **fields)


def text_of(sequence: DrivenSequence) -> str:
    output = sequence.output
    if END in output:
        output = output[: output.index(END)]
    return b"".join(TEXTS[i] for i in output).decode()


@pytest.fixture
def runner(make_runner: Callable[..., TorchRunner]) -> TorchRunner:
    return make_runner(load_tokenizer=lambda: TOKENIZER)


def test_in_one_batch_with_plain_sequences(runner: TorchRunner) -> None:
    """The tiny model has 211 tokens: single bytes are all that its grammar can use."""
    driver = StepDriver(runner, PAGE_SIZE)
    plain = [driver.add(i, [5, 6, i], TokenSampling(seed=i)) for i in range(2)]
    held = [driver.add(i + 2, [7, i], grammatical(i)) for i in range(4)]
    driver.run(prefill=[(s, len(s.tokens)) for s in [*plain, *held]])
    driver.finish([*plain, *held], 12)
    for sequence in held:
        assert re.fullmatch(r"a[b-d]{2,6}\.", text_of(sequence))
    for sequence in [*plain, *held]:
        driver.free(sequence)
    again = [driver.add(i + 20, [5, 6, i], TokenSampling(seed=i)) for i in range(2)]
    driver.run(prefill=[(s, 3) for s in again])
    driver.finish(again, 12)
    assert [s.output for s in again] == [s.output for s in plain]


def test_min_tokens_give_way_to_the_grammar(runner: TorchRunner) -> None:
    driver = StepDriver(runner, PAGE_SIZE)
    sampling = grammatical(3, min_tokens=11, banned_until_min_tokens=(END,))
    held = driver.add(0, [7, 8], sampling)
    driver.run(prefill=[(held, 2)])
    driver.finish([held], 12)
    assert re.fullmatch(r"a[b-d]{2,6}\.", text_of(held))


def test_nothing_left_is_minus_two(runner: TorchRunner) -> None:
    driver = StepDriver(runner, PAGE_SIZE)
    [a] = TOKENIZER.encode("a")
    held = driver.add(0, [7, 8], grammatical(3, bad_words=((a,),)))
    plain = driver.add(1, [7, 8], TokenSampling(temperature=0.0))
    output = driver.run(prefill=[(held, 2), (plain, 2)])
    assert output.token_ids[0] == -2
    assert output.token_ids[1] >= 0
