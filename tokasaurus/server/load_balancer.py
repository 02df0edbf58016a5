"""Which manager takes a prompt: the one that has its prefix cached, unless it has too much to do.

What the managers have cached is only guessed, from the prompts that were sent to them.
"""

from collections import OrderedDict

import numpy as np

from tokasaurus.ipc.messages.to_manager import GenerateRequest

_TOKENS_PER_CHUNK = 64
"""Prefixes are remembered in steps of so many tokens."""
_MAX_CHUNKS = 65_536
"""Per manager; 4 million tokens in some 10 MB."""
_MAX_EXPECTED_OUTPUT = 512
"""Few outputs are as long as their `max_tokens` allows."""
_MAX_LEAD_SHARE = 0.25
_MAX_LEAD_TOKENS = 8192

_MIX = np.uint64(0xBF58476D1CE4E5B9)
_POWERS = np.cumprod(np.full(_TOKENS_PER_CHUNK, 0x9E3779B97F4A7C15, np.uint64))
"""Of an odd number, modulo 2**64."""


class LoadBalancer:
    """Chooses by cached prefix, then by outstanding work.

    Work is counted in tokens: those of a prompt that are not cached, and `max_tokens` or a typical
    output's length. The manager with the longest cached prefix takes the prompt as long as its work
    exceeds the least loaded one's by no more than the tokens that it saves, plus a quarter and 8192
    tokens times the share of the prompt that it saves.
    """

    def __init__(self, num_managers: int, max_chunks: int = _MAX_CHUNKS) -> None:
        """`max_chunks` bounds the prefixes remembered per manager, in chunks of 64 tokens."""
        self._num_sequences = [0] * num_managers
        self._num_tokens = [0] * num_managers
        """Outstanding work."""
        self._num_tokens_ever = [0] * num_managers
        self._work: dict[int, int] = {}
        """Tokens counted for each request in flight."""
        self._prefixes = [PrefixIndex(max_chunks) for _ in range(num_managers)]
        self._last_prompt: tuple[np.ndarray, str, list[int]] | None = None
        """Samples of a prompt come one after the other: its hashes are computed once."""

    def choose(self, prompt_ids: np.ndarray, cache_salt: str = "") -> int:
        """The dp_rank for all samples of a prompt, which share its prefix."""
        if len(self._num_tokens) == 1:
            return 0
        hashes = self._hashes(prompt_ids, cache_salt)
        cached = [_TOKENS_PER_CHUNK * prefixes.match(hashes) for prefixes in self._prefixes]
        least = min(self._num_tokens)
        lead_per_token = 1 + (_MAX_LEAD_SHARE * least + _MAX_LEAD_TOKENS) / max(len(prompt_ids), 1)
        ranks = [
            rank
            for rank, num_tokens in enumerate(self._num_tokens)
            if num_tokens - least <= lead_per_token * cached[rank]
        ]
        return min(ranks, key=lambda rank: (-cached[rank], *self._load(rank)))

    def add(self, dp_rank: int, request: GenerateRequest) -> None:
        """The request was sent there."""
        num_tokens = min(request.max_tokens, _MAX_EXPECTED_OUTPUT) + len(request.prompt_ids)
        if len(self._num_tokens) > 1:
            hashes = self._hashes(request.prompt_ids, request.cache_salt)
            num_tokens -= _TOKENS_PER_CHUNK * self._prefixes[dp_rank].add(hashes)
        assert request.request_id not in self._work, f"{request.request_id} was added twice"
        self._work[request.request_id] = num_tokens
        self._num_sequences[dp_rank] += 1
        self._num_tokens[dp_rank] += num_tokens
        self._num_tokens_ever[dp_rank] += num_tokens

    def remove(self, dp_rank: int, request: GenerateRequest) -> None:
        """The request has ended there."""
        self._num_sequences[dp_rank] -= 1
        self._num_tokens[dp_rank] -= self._work.pop(request.request_id)
        assert self._num_sequences[dp_rank] >= 0, (dp_rank, self._num_sequences)

    def outstanding(self) -> list[int]:
        """Sequences per dp_rank that have not ended."""
        return list(self._num_sequences)

    def outstanding_tokens(self) -> list[int]:
        """Work per dp_rank that has not ended."""
        return list(self._num_tokens)

    def _load(self, rank: int) -> tuple[int, int, int]:
        """For equals, the one that was given least so far: its cache has room."""
        return self._num_tokens[rank], self._num_sequences[rank], self._num_tokens_ever[rank]

    def _hashes(self, prompt_ids: np.ndarray, cache_salt: str) -> list[int]:
        last = self._last_prompt
        if last is not None and last[0] is prompt_ids and last[1] == cache_salt:
            return last[2]
        hashes = prefix_hashes(prompt_ids, cache_salt)
        self._last_prompt = prompt_ids, cache_salt, hashes
        return hashes


class PrefixIndex:
    """The prefixes that were used most recently.

    A prefix is at least as recent as every longer one that begins with it, so the index never
    forgets one without the longer ones.
    """

    def __init__(self, max_chunks: int) -> None:
        self._max_chunks = max_chunks
        self._recent: OrderedDict[int, None] = OrderedDict()
        self._newest: list[int] = []
        """What was added last, which stands at the end already."""

    def __len__(self) -> int:
        return len(self._recent)

    def match(self, hashes: list[int]) -> int:
        """How many of these prefixes, which get longer, are known."""
        low, high = 0, len(hashes)
        while low < high:
            middle = (low + high) // 2
            if hashes[middle] in self._recent:
                low = middle + 1
            else:
                high = middle
        return low

    def add(self, hashes: list[int]) -> int:
        """Remember these prefixes as the most recent ones; how many of them were known."""
        if hashes is self._newest:
            return min(len(hashes), self._max_chunks)
        num_known = self.match(hashes)
        self._newest = hashes
        recent = self._recent
        for value in reversed(hashes[: self._max_chunks]):
            recent[value] = None
            recent.move_to_end(value)
        while len(recent) > self._max_chunks:
            recent.popitem(last=False)
        return num_known


def prefix_hashes(prompt_ids: np.ndarray, cache_salt: str) -> list[int]:
    """A hash of each prefix that is a whole number of chunks long, from the shortest on."""
    num_chunks = len(prompt_ids) // _TOKENS_PER_CHUNK
    mixed = np.asarray(prompt_ids[: num_chunks * _TOKENS_PER_CHUNK]).astype(np.uint64)
    mixed *= _MIX
    mixed ^= mixed >> np.uint64(31)
    chunks = mixed.reshape(num_chunks, _TOKENS_PER_CHUNK) @ _POWERS
    value = hash(cache_salt)
    return [value := hash((value, chunk)) for chunk in chunks.tolist()]
