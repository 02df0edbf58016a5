"""One checkpoint's tokenizer: text to ids as the checkpoint says, ids to text, bytes of a token."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.processors import TemplateProcessing

from tokasaurus.errors import ModelError
from tokasaurus.tokenization.convert import converted_tokenizer_file
from tokasaurus.tokenization.detokenizer import ByteDetokenizer, Detokenizer, WindowDetokenizer
from tokasaurus.tokenization.token_bytes import TokenBytes

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
_NO_IDS: frozenset[int] = frozenset()


class Tokenizer:
    """Safe to share between threads once built."""

    def __init__(self, backend: tokenizers.Tokenizer, settings: dict[str, Any]) -> None:
        """`settings` is what tokenizer_config.json holds."""
        backend.no_truncation()
        backend.no_padding()
        self.settings = settings
        self.named_tokens = _named_tokens(settings)
        """"bos_token" and the like, with their texts: chat templates use them by name."""
        self._backend = backend
        _add_missing_special_tokens(backend, settings, self.named_tokens)
        _apply_bos_and_eos(backend, settings, self.named_tokens)
        self._special_ids = frozenset(
            token_id for token_id, t in backend.get_added_tokens_decoder().items() if t.special
        )
        self._token_bytes = TokenBytes.for_backend(backend)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """From a model's folder. Raises ModelError if it has no tokenizer that can be used."""
        file = folder / "tokenizer.json"
        if not file.is_file():
            file = converted_tokenizer_file(folder)
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the package raises nothing more specific
            raise ModelError(
                f"{file} can't be read as a tokenizer ({error}); download the model again."
            ) from error
        return cls(backend, _read_settings(folder))

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary, added tokens included; ids may have gaps."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The token that ends a text, if the checkpoint's tokenizer names one."""
        eos_token_id = self._backend.token_to_id(self.named_tokens.get("eos_token", ""))
        return () if eos_token_id is None else (eos_token_id,)

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Tokens that are no text: they stand for the structure around it."""
        return self._special_ids

    def token_id(self, token: str) -> int | None:
        """The id of a token given as the vocabulary spells it."""
        return self._backend.token_to_id(token)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """`add_special_tokens`: put BOS (and whatever else the checkpoint wants) around it."""
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> list[list[int]]:
        """`encode` of each, on several threads."""
        encodings = self._backend.encode_batch_fast(
            list(texts), add_special_tokens=add_special_tokens
        )
        return [encoding.ids for encoding in encodings]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of all tokens together."""
        detokenizer = self.detokenizer(skip_special_tokens=skip_special_tokens)
        return detokenizer.push(token_ids) + detokenizer.flush()

    def detokenizer(
        self,
        *,
        skip_special_tokens: bool = True,
        prompt_ids: Sequence[int] = (),
        visible_tokens: tuple[str, ...] = (),
    ) -> Detokenizer:
        """For the text that follows `prompt_ids`, which themselves are not returned.

        `visible_tokens` are not skipped; a decoder that does not work token by token can't tell
        them apart, and then skips no special token if one of these is special.
        """
        hidden = self._special_ids if skip_special_tokens else _NO_IDS
        if visible_tokens and hidden:
            hidden = hidden.difference(map(self._backend.token_to_id, visible_tokens))
        if self._token_bytes is None:
            return WindowDetokenizer(
                self._backend,
                skip_special_tokens=skip_special_tokens and hidden == self._special_ids,
                prefix=[int(i) for i in prompt_ids[-8:]],
            )
        at_start = all(int(i) in hidden for i in prompt_ids)
        return ByteDetokenizer(self._token_bytes, hidden, at_start=at_start)

    def token_bytes(self, token_id: int) -> bytes:
        """What the token contributes inside a text; special tokens show as their names."""
        if self._token_bytes is not None:
            return self._token_bytes[token_id]
        return self._backend.decode([token_id], skip_special_tokens=False).encode()


def _read_settings(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = folder / name
        if not file.is_file():
            continue
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{file} can't be read ({error}); download the model again."
            ) from error
        if not isinstance(values, dict):
            raise ModelError(f"{file} does not hold an object; download the model again.")
        settings |= values
    return settings


def _text_of(token: Any) -> str | None:
    """Special tokens stand in the files as text, or as an object with "content"."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _named_tokens(settings: dict[str, Any]) -> dict[str, str]:
    texts = {name: _text_of(settings.get(name)) for name in _NAMED_TOKENS}
    return {name: text for name, text in texts.items() if text is not None}


def _add_missing_special_tokens(
    backend: tokenizers.Tokenizer, settings: dict[str, Any], named_tokens: dict[str, str]
) -> None:
    """Some checkpoints declare special tokens in tokenizer_config.json only."""
    known = {t.content for t in backend.get_added_tokens_decoder().values()}
    declared = settings.get("added_tokens_decoder")
    missing = []
    if isinstance(declared, dict):
        ids = sorted((key for key in declared if key.isdecimal()), key=int)
        for entry in map(declared.__getitem__, ids):
            text = _text_of(entry)
            if text is not None and text not in known and isinstance(entry, dict):
                flags = {k: bool(entry.get(k, False)) for k in ("lstrip", "rstrip", "normalized")}
                missing.append(
                    tokenizers.AddedToken(text, special=bool(entry.get("special")), **flags)
                )
    extra = settings.get("additional_special_tokens") or settings.get("extra_special_tokens")
    names = [*named_tokens.values(), *map(_text_of, extra if isinstance(extra, list) else [])]
    known |= {token.content for token in missing}
    for name in dict.fromkeys(names):
        if name is not None and name not in known:
            missing.append(tokenizers.AddedToken(name, special=True, normalized=False))
    special = [token for token in missing if token.special]
    backend.add_special_tokens(special)
    backend.add_tokens([token for token in missing if not token.special])


def _apply_bos_and_eos(
    backend: tokenizers.Tokenizer, settings: dict[str, Any], named_tokens: dict[str, str]
) -> None:
    """`add_bos_token` and `add_eos_token`, where given, replace tokenizer.json's own template."""
    flags = {side: settings.get(f"add_{side}_token") for side in ("bos", "eos")}
    if not any(isinstance(flag, bool) for flag in flags.values()):
        return
    used = {
        side: named_tokens[f"{side}_token"]
        for side, flag in flags.items()
        if flag is True and f"{side}_token" in named_tokens
    }
    bos, eos = used.get("bos"), used.get("eos")
    single = [*([bos] if bos else []), "$A", *([eos] if eos else [])]
    ids = [(token, backend.token_to_id(token)) for token in dict.fromkeys(used.values())]
    backend.post_processor = TemplateProcessing(
        single=single, pair=[*single, "$B:1"], special_tokens=ids
    )
