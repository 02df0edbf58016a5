"""Tokenizers small enough to train or spell out in a test, one per kind of decoder."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

CORPUS = [
    "def fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\n",
    "The quick brown fox jumps over the lazy dog. " * 3,
    "naïve café 日本語 😀 Привет",
]
SPECIALS = ["<s>", "</s>", "<|im_end|>"]


def byte_level() -> Tokenizer:
    """As of GPT-2, Llama 3 and Qwen; ids 0..2 are special, 'vis ible' is a visible added token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("vis ible", normalized=False)])
    return tokenizer


def byte_fallback(*, strip: bool = True) -> Tokenizer:
    """As of Llama 2 and Mistral (strip) or Gemma (not)."""
    words = ["▁", "▁the", "▁fox", "ing", "a", "b", "é", "日", "▁▁", "."]
    vocab = SPECIALS + [f"<0x{byte:02X}>" for byte in range(256)] + words
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(vocab)},
            merges=[],
            byte_fallback=True,
            unk_token="<s>",
        )
    )
    tokenizer.add_special_tokens(SPECIALS)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    return tokenizer


def words(decoder: decoders.Decoder | None) -> Tokenizer:
    """Whole tokens under any decoder."""
    vocab = [*SPECIALS, "▁hello", "▁▁wide", "world", "##s", "▁", ".", "n't", "日本"]
    tokenizer = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate(vocab)}, unk_token="<s>")
    )
    tokenizer.add_special_tokens(SPECIALS)
    if decoder is not None:
        tokenizer.decoder = decoder
    return tokenizer
