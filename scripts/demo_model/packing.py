"""Turns texts and transcripts into packed token rows with a loss weight per token."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from demo_model.tokenizer import END_OF_TEXT, IM_END, IM_START
from demo_model.transcripts import Message

PYTHON_WEIGHT = 0.7
CONTEXT_WEIGHT = 0.1
ANSWER_WEIGHT = 1.0


@dataclass(frozen=True, slots=True)
class Stream:
    """A flat run of token ids, the weight of each in the loss, and where rows may begin.

    `starts` holds the sorted first positions of the documents, or nothing if a row may begin
    anywhere.
    """

    ids: np.ndarray
    weights: np.ndarray
    starts: np.ndarray


class _StreamBuilder:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.weights: list[float] = []
        self.starts: list[int] = []

    def start_document(self) -> None:
        self.starts.append(len(self.ids))

    def add(self, text: str, weight: float) -> None:
        ids = self.tokenizer.encode(text).ids
        self.ids.extend(ids)
        self.weights.extend([weight] * len(ids))

    def build(self, num_tokens: int) -> Stream:
        return Stream(
            np.asarray(self.ids[:num_tokens], dtype=np.int64),
            np.asarray(self.weights[:num_tokens], dtype=np.float32),
            np.asarray(self.starts, dtype=np.int64),
        )


def python_stream(tokenizer: Tokenizer, texts: Iterable[str], num_tokens: int) -> Stream:
    """Source files one after another, each closed by the end-of-text token."""
    builder = _StreamBuilder(tokenizer)
    for text in texts:
        if len(builder.ids) >= num_tokens:
            break
        builder.add(text + END_OF_TEXT, PYTHON_WEIGHT)
    return builder.build(num_tokens)


def _add_chat(builder: _StreamBuilder, messages: list[Message]) -> None:
    builder.start_document()
    for message in messages:
        head = f"{IM_START}{message['role']}\n"
        body = f"{message['content']}{IM_END}"
        answer = message["role"] == "assistant"
        builder.add(head, CONTEXT_WEIGHT)
        builder.add(body, ANSWER_WEIGHT if answer else CONTEXT_WEIGHT)
        builder.add("\n", CONTEXT_WEIGHT)
    builder.add(END_OF_TEXT, CONTEXT_WEIGHT)


def _add_session(builder: _StreamBuilder, session: str) -> None:
    builder.start_document()
    for line in session.splitlines(keepends=True):
        builder.add(line, CONTEXT_WEIGHT if line.startswith(">>>") else ANSWER_WEIGHT)
    builder.add(END_OF_TEXT, CONTEXT_WEIGHT)


def chat_stream(
    tokenizer: Tokenizer,
    chats: Iterator[list[Message]],
    sessions: Iterator[str],
    num_tokens: int,
    session_every: int,
) -> Stream:
    """Transcripts, with one interpreter session of sums after every `session_every` of them."""
    builder = _StreamBuilder(tokenizer)
    index = 0
    while len(builder.ids) < num_tokens:
        index += 1
        _add_chat(builder, next(chats))
        if index % session_every == 0:
            _add_session(builder, next(sessions))
    return builder.build(num_tokens)


class RowSource:
    """Deals a stream out as rows of any length and starts over at its end."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.position = 0

    def rows(self, num_rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The next rows; a row holds `length` inputs and the token after the last of them."""
        ids, weights = [], []
        for _ in range(num_rows):
            begin = self._document_start(self.position)
            if begin + length + 1 > len(self.stream.ids):
                begin = 0
            window = slice(begin, begin + length + 1)
            ids.append(self.stream.ids[window])
            weights.append(self.stream.weights[window])
            self.position = begin + length
        return np.stack(ids), np.stack(weights)

    def _document_start(self, position: int) -> int:
        """Where the document around a position begins; the position itself without `starts`."""
        if not len(self.stream.starts):
            return position
        index = int(np.searchsorted(self.stream.starts, position, side="right")) - 1
        return int(self.stream.starts[index])
