"""Streamed text equals the tokenizers package's decoding of all tokens, however they are cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders

from tests.examples import examples
from tests.unit.tokenization.tiny_tokenizers import byte_fallback, byte_level, words
from tokasaurus.tokenization.detokenizer import Detokenizer, WindowDetokenizer
from tokasaurus.tokenization.tokenizer import Tokenizer

EXACT = {
    "byte level": byte_level(),
    "metaspace": words(decoders.Metaspace()),
    "metaspace, no prefix": words(decoders.Metaspace(prepend_scheme="never")),
    "no decoder": words(None),
}
FALLBACK = {"strip": byte_fallback(), "no strip": byte_fallback(strip=False)}

token_lists = st.lists(st.integers(0, 420), max_size=40)
cuts = st.lists(st.integers(0, 5), max_size=40)


def streamed(detokenizer: Detokenizer, ids: list[int], sizes: list[int]) -> str:
    pieces, start = [], 0
    for size in sizes:
        pieces.append(detokenizer.push(ids[start : start + size]))
        start += size
    return "".join(pieces) + detokenizer.push(ids[start:]) + detokenizer.flush()


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("skip", [True, False])
@given(ids=token_lists, sizes=cuts)
@settings(max_examples=examples(50, searching=200))
def test_equals_full_decode(kind: str, skip: bool, ids: list[int], sizes: list[int]) -> None:
    backend = EXACT[kind]
    detokenizer = Tokenizer(backend, {}).detokenizer(skip_special_tokens=skip)
    assert streamed(detokenizer, ids, sizes) == backend.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", FALLBACK)
@given(text=st.text(alphabet="ab é日😀the fox.ﷺ"), sizes=cuts)
@settings(max_examples=examples(50, searching=200))
def test_byte_fallback_equals_full_decode_of_text(kind: str, text: str, sizes: list[int]) -> None:
    backend = FALLBACK[kind]
    ids = backend.encode(text.replace(" ", "▁")).ids
    tokenizer = Tokenizer(backend, {})
    assert streamed(tokenizer.detokenizer(), ids, sizes) == backend.decode(ids)
    assert streamed(tokenizer.detokenizer(), ids, sizes) == tokenizer.decode(ids)


@given(ids=token_lists, sizes=cuts)
@settings(max_examples=examples(100, searching=400))
def test_byte_fallback_of_anything(ids: list[int], sizes: list[int]) -> None:
    backend = FALLBACK["strip"]
    tokenizer = Tokenizer(backend, {})
    text = streamed(tokenizer.detokenizer(), ids, sizes)
    assert text == tokenizer.decode(ids)
    full = backend.decode(ids)
    if "�" not in full:
        assert text == full


@pytest.mark.parametrize("decoder", [decoders.WordPiece(), decoders.BPEDecoder("n't")])
@given(ids=st.lists(st.integers(0, 11), max_size=30), sizes=cuts)
@settings(max_examples=100)
def test_other_decoders_do_not_depend_on_cuts(
    decoder: decoders.Decoder, ids: list[int], sizes: list[int]
) -> None:
    tokenizer = Tokenizer(words(decoder), {})
    assert isinstance(tokenizer.detokenizer(), WindowDetokenizer)
    assert streamed(tokenizer.detokenizer(), ids, sizes) == tokenizer.decode(ids)


def test_window_holds_back_incomplete_characters() -> None:
    backend = byte_level()
    detokenizer = WindowDetokenizer(backend, skip_special_tokens=True)
    ids = byte_ids(backend, "😀")
    assert [detokenizer.push([i]) for i in ids] == ["", "", "", "😀"]
    for token_id in byte_ids(backend, "日")[:2]:
        assert detokenizer.push([token_id]) == ""
    assert detokenizer.flush() == "�"


def byte_ids(backend: Backend, text: str) -> list[int]:
    """One token per byte."""
    printable = {chr(b): b for b in (*range(33, 127), *range(161, 173), *range(174, 256))}
    others = [b for b in range(256) if b not in printable.values()]
    char_of = {b: c for c, b in printable.items()} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [backend.token_to_id(char_of[byte]) for byte in text.encode()]


def test_incomplete_characters_wait_and_are_flushed_as_replacement() -> None:
    backend = byte_level()
    detokenizer = Tokenizer(backend, {}).detokenizer()
    ids = byte_ids(backend, "😀")
    assert [detokenizer.push([i]) for i in ids[:3]] == ["", "", ""]
    assert detokenizer.flush() == "�"


def test_special_token_inside_a_character_is_invisible() -> None:
    backend = byte_level()
    ids = byte_ids(backend, "é")
    assert Tokenizer(backend, {}).decode([ids[0], 0, ids[1]]) == "é"


def test_leading_space_is_kept_after_a_visible_prompt() -> None:
    backend = byte_fallback()
    tokenizer = Tokenizer(backend, {})
    the, bos = backend.token_to_id("▁the"), 0
    assert tokenizer.detokenizer().push([the]) == "the"
    assert tokenizer.detokenizer(prompt_ids=[bos]).push([the]) == "the"
    assert tokenizer.detokenizer(prompt_ids=[bos, the]).push([the]) == " the"


def test_ids_outside_the_vocabulary_are_nothing() -> None:
    assert Tokenizer(byte_level(), {}).decode([100_000, -1, 2**40]) == ""


def test_token_bytes() -> None:
    backend = byte_level()
    tokenizer = Tokenizer(backend, {})
    assert tokenizer.token_bytes(2) == b"<|im_end|>"
    assert tokenizer.token_bytes(byte_ids(backend, "é")[0]) == b"\xc3"
    fallback = byte_fallback()
    assert Tokenizer(fallback, {}).token_bytes(fallback.token_to_id("▁the")) == b" the"
    assert Tokenizer(fallback, {}).token_bytes(fallback.token_to_id("<0xE4>")) == b"\xe4"
    piece = words(decoders.WordPiece())
    assert Tokenizer(piece, {}).token_bytes(piece.token_to_id("world")) == b"world"
