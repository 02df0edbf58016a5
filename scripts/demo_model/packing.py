"""Turns texts and transcripts into packed token rows; each token counts in the loss or not."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from demo_model.tokenizer import END_OF_TEXT, IM_END, IM_START
from demo_model.transcripts import Message

SESSION_EVERY = 5


@dataclass(frozen=True, slots=True)
class Stream:
    """A flat run of token ids, whether each counts in the loss, and where documents begin."""

    ids: np.ndarray
    counted: np.ndarray
    starts: np.ndarray


class _StreamBuilder:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.counted: list[bool] = []
        self.starts: list[int] = []

    def start_document(self) -> None:
        self.starts.append(len(self.ids))

    def add(self, text: str, counted: bool) -> None:
        ids = self.tokenizer.encode(text).ids
        self.ids.extend(ids)
        self.counted.extend([counted] * len(ids))

    def build(self) -> Stream:
        return Stream(
            np.asarray(self.ids, dtype=np.int64),
            np.asarray(self.counted, dtype=np.bool_),
            np.asarray(self.starts, dtype=np.int64),
        )


def python_stream(tokenizer: Tokenizer, texts: Iterable[str]) -> Stream:
    """Pieces of source one after another, each closed by the end-of-text token."""
    builder = _StreamBuilder(tokenizer)
    for text in texts:
        builder.start_document()
        builder.add(text + END_OF_TEXT, counted=True)
    return builder.build()


def _add_chat(builder: _StreamBuilder, messages: list[Message]) -> None:
    builder.start_document()
    for message in messages:
        head = f"{IM_START}{message['role']}\n"
        body = f"{message['content']}{IM_END}"
        builder.add(head, counted=False)
        builder.add(body, counted=message["role"] == "assistant")
        builder.add("\n", counted=False)
    builder.add(END_OF_TEXT, counted=False)


def _add_session(builder: _StreamBuilder, session: str) -> None:
    builder.start_document()
    for line in session.splitlines(keepends=True):
        builder.add(line, counted=not line.startswith(">>>"))
    builder.add(END_OF_TEXT, counted=False)


def chat_stream(
    tokenizer: Tokenizer,
    chats: Iterator[list[Message]],
    sessions: Iterator[str],
    num_tokens: int,
) -> Stream:
    """Transcripts, with an interpreter session of sums after every `SESSION_EVERY` of them."""
    builder = _StreamBuilder(tokenizer)
    index = 0
    while len(builder.ids) < num_tokens:
        index += 1
        _add_chat(builder, next(chats))
        if index % SESSION_EVERY == 0:
            _add_session(builder, next(sessions))
    return builder.build()


class RowSource:
    """Deals a stream out as rows of one length and starts over at its end.

    A row begins with the document at hand, again from its start, unless the last row did so too.
    """

    def __init__(self, stream: Stream, length: int) -> None:
        self.stream = stream
        self.length = length
        self.begin = -length

    def rows(self, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
        """The next rows; a row holds `length` inputs and the token after the last of them."""
        ids, counted = [], []
        for _ in range(num_rows):
            position = self.begin + self.length
            index = int(np.searchsorted(self.stream.starts, position, side="right")) - 1
            start = int(self.stream.starts[index])
            self.begin = start if start > self.begin else position
            if self.begin + self.length + 1 > len(self.stream.ids):
                self.begin = 0
            window = slice(self.begin, self.begin + self.length + 1)
            ids.append(self.stream.ids[window])
            counted.append(self.stream.counted[window])
        return np.stack(ids), np.stack(counted)
