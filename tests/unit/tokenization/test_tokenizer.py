"""A tokenizer does what its checkpoint's files say."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from tests.unit.tokenization.tiny_tokenizers import byte_level
from tokasaurus.errors import ModelError, OverloadedError
from tokasaurus.tokenization.encoding_pool import EncodingPool
from tokasaurus.tokenization.tokenizer import Tokenizer

TEXT = "def fib(n): 日本語"


def save(folder: Path, settings: dict[str, Any], *, template: bool = False) -> Tokenizer:
    backend = byte_level()
    if template:
        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return Tokenizer.load(folder)


def test_round_trip(tmp_path: Path) -> None:
    tokenizer = save(tmp_path, {})
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.encode_batch([TEXT, "a"]) == [ids, tokenizer.encode("a")]
    assert tokenizer.token_id("<|im_end|>") == 2
    assert tokenizer.vocab_size >= 260


def test_special_tokens_in_text_are_recognised_and_hidden(tmp_path: Path) -> None:
    tokenizer = save(tmp_path, {})
    ids = tokenizer.encode("a<|im_end|>")
    assert ids[-1] == 2
    assert tokenizer.decode(ids) == "a"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "a<|im_end|>"


def test_special_tokens_that_mean_something_stay_visible(tmp_path: Path) -> None:
    tokenizer = save(tmp_path, {})
    ids = tokenizer.encode("<s>a<|im_end|>b")
    assert tokenizer.detokenizer().push(ids) == "ab"
    shown = tokenizer.detokenizer(visible_tokens=("<|im_end|>", "<tool_call>"))
    assert shown.push(ids) == "a<|im_end|>b"


@pytest.mark.parametrize(
    ("settings", "template", "expected"),
    [
        ({}, False, []),
        ({}, True, [0]),
        ({"add_bos_token": True, "bos_token": "<s>"}, False, [0]),
        ({"add_bos_token": True, "bos_token": {"content": "<s>"}}, True, [0]),
        ({"add_bos_token": False, "bos_token": "<s>"}, True, []),
        ({"add_bos_token": True}, False, []),
        ({"add_bos_token": None, "bos_token": "<s>"}, True, [0]),
    ],
)
def test_bos(tmp_path: Path, settings: dict[str, Any], template: bool, expected: list[int]) -> None:
    tokenizer = save(tmp_path, settings, template=template)
    plain = tokenizer.encode("a b", add_special_tokens=False)
    assert tokenizer.encode("a b") == expected + plain


def test_eos(tmp_path: Path) -> None:
    tokenizer = save(tmp_path, {"add_eos_token": True, "eos_token": "</s>"})
    assert tokenizer.encode("a")[-1] == 1


def test_special_tokens_declared_in_the_config_only(tmp_path: Path) -> None:
    settings = {
        "added_tokens_decoder": {"401": {"content": "<tool>", "special": True}, "x": 1},
        "additional_special_tokens": ["<extra>"],
        "pad_token": "<pad>",
    }
    tokenizer = save(tmp_path, settings)
    for token in ("<tool>", "<extra>", "<pad>"):
        assert tokenizer.encode(token) == [tokenizer.token_id(token)]
        assert tokenizer.decode(tokenizer.encode(token)) == ""
    assert tokenizer.named_tokens == {"pad_token": "<pad>"}


def test_broken_files_are_model_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no tokenizer"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer\.json can't be read"):
        Tokenizer.load(tmp_path)
    save(tmp_path, {})
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(ModelError, match="does not hold an object"):
        Tokenizer.load(tmp_path)


def test_pool_bounds_what_waits(tmp_path: Path) -> None:
    tokenizer = save(tmp_path, {})
    is_free = threading.Event()
    encode = tokenizer.encode

    def slow(text: str, *, add_special_tokens: bool = True) -> list[int]:
        assert is_free.wait(60)
        return encode(text, add_special_tokens=add_special_tokens)

    tokenizer.encode = slow  # type: ignore[method-assign]
    pool = EncodingPool(tokenizer, num_threads=1, max_characters=30_000)
    large, small = "a" * 50_000, "a" * 1000

    async def check() -> None:
        alone = asyncio.create_task(pool.encode([large]))
        await asyncio.sleep(0)
        for _ in range(2):
            with pytest.raises(OverloadedError, match="try again"):
                await pool.encode([small])
        is_free.set()
        assert await alone == [encode(large)]
        is_free.clear()
        fitting = [asyncio.create_task(pool.encode([small])) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await pool.encode([small])
        fitting.pop().cancel()
        await asyncio.sleep(0)
        fitting.append(asyncio.create_task(pool.encode([small])))
        is_free.set()
        assert await asyncio.gather(*fitting) == [[encode(small)]] * 3

    asyncio.run(check())
    pool.close()


def test_pool_encodes_short_and_long_texts(tmp_path: Path) -> None:
    tokenizer = save(tmp_path, {})
    pool = EncodingPool(tokenizer)
    long = TEXT * 100

    async def encode() -> None:
        assert await pool.encode([TEXT]) == [tokenizer.encode(TEXT)]
        assert await pool.encode([long]) == [tokenizer.encode(long)]
        assert await pool.encode([long, TEXT], add_special_tokens=False) == tokenizer.encode_batch(
            [long, TEXT], add_special_tokens=False
        )
        assert await pool.encode([]) == []

    asyncio.run(encode())
    pool.close()
