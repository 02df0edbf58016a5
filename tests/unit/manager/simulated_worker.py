"""A worker without a model: mirrors the slot table, checks every delta, draws hashes for tokens.

Its KV cache holds, per place, a token and the hash of all tokens up to it. What a sequence reads
must chain up to its own hash, so a block that is shared, reused or evicted wrongly shows at once.
"""

import zlib
from dataclasses import dataclass, field

import numpy as np

from tokasaurus.ipc.messages.to_manager import PromptLogprobs, StepOutput, TokenSampling
from tokasaurus.ipc.messages.to_worker import HydragenGroup, StepInput


def chain(previous: int, token_id: int) -> int:
    """Hash of a token and everything before it."""
    return zlib.crc32(int(token_id).to_bytes(4, "little", signed=True), previous)


def chain_all(token_ids: list[int]) -> int:
    value = 0
    for token_id in token_ids:
        value = chain(value, token_id)
    return value


def draw(value: int, seed: int, vocab_size: int) -> int:
    """The token that follows tokens of this hash."""
    return chain(value, seed) % vocab_size


@dataclass
class _Slot:
    num_prompt_tokens: int
    sampling: TokenSampling
    num_cached: int
    pooling: str = ""
    stop_token_ids: tuple[int, ...] = ()
    table: list[int] = field(default_factory=list)
    num_tokens: int = 0
    """Whose KV is written."""
    value: int = 0
    """Hash of those."""
    last_token: int | None = None


class SimulatedWorker:
    """Executes steps at once and returns their outputs."""

    def __init__(
        self,
        num_blocks: int,
        page_size: int,
        vocab_size: int = 50,
        *,
        mixed_batches: bool = True,
        broken_seeds: frozenset[int] = frozenset(),
    ) -> None:
        """Draws for `broken_seeds` fail as if the logits held a NaN."""
        self.page_size = page_size
        self.vocab_size = vocab_size
        self.mixed_batches = mixed_batches
        self.broken_seeds = broken_seeds
        self.num_prefill_tokens = 0
        self.max_step_tokens = 0
        self._kv: list[list[tuple[int, int]]] = [[(0, 0)] * page_size for _ in range(num_blocks)]
        self._slots: dict[int, _Slot] = {}
        self._decode_order: list[int] = []
        self.groups: list[HydragenGroup] = []
        self.num_grouped_rows = 0
        self._next_step = 0
        self.hidden_size = 2
        self.num_passes = 0

    def execute(self, step: StepInput, most: int = 1) -> StepOutput:
        """Of a lease, at most `most` passes, as if something came then.

        The result of a single one is an array of one dimension or of two, as with a real worker.
        """
        first = self._first_pass(step)
        self.num_passes += 1
        if step.max_passes == 1:
            return first
        assert not step.prefill_slots.size
        passes = [first.token_ids]
        while len(passes) < min(step.max_passes, most) and not self._any_end(passes[-1]):
            runs = self._decodes()
            self._run(runs)
            passes.append(self._output(step, runs).token_ids)
            self.num_passes += 1
        if len(passes) == 1 and step.step_id % 2:
            return first
        return StepOutput(step_id=step.step_id, token_ids=np.stack(passes))

    def _any_end(self, token_ids: np.ndarray) -> bool:
        rows = zip(self._decode_order, token_ids.tolist(), strict=True)
        return any(t < 0 or t in self._slots[slot].stop_token_ids for slot, t in rows)

    def _first_pass(self, step: StepInput) -> StepOutput:
        assert step.step_id == self._next_step
        self._next_step += 1
        self._apply_deltas(step)
        if step.decode_slots is not None:
            self._decode_order = step.decode_slots.tolist()
            self.groups = []
        if step.hydragen_groups is not None:
            self.groups = step.hydragen_groups
        decodes = self._decode_order
        self._check_groups(decodes)
        assert len(set(decodes)) == len(decodes)
        assert not set(decodes) & set(step.prefill_slots.tolist())
        if not self.mixed_batches:
            assert not (decodes and step.prefill_slots.size)
        self.max_step_tokens = max(self.max_step_tokens, len(decodes) + step.prefill_ids.size)
        runs = self._runs(step, decodes)
        self._run(runs)
        return self._output(step, runs)

    def _run(self, runs: list[tuple[int, int, list[int], bool]]) -> None:
        for slot, _, token_ids, _ in runs:
            self._write(slot, token_ids)
        for slot, *_ in runs:
            self._check_reads(slot)

    def _check_groups(self, decodes: list[int]) -> None:
        """Runs are in bounds and disjoint, and their tables begin with the same blocks."""
        end = 0
        for group in self.groups:
            assert group.first_row >= end
            assert group.num_blocks > 0
            end = group.first_row + group.num_rows
            assert end <= len(decodes)
            tables = [self._slots[slot].table for slot in decodes[group.first_row : end]]
            assert len({tuple(table[: group.num_blocks]) for table in tables}) == 1
            assert len(tables[0]) > group.num_blocks
            self.num_grouped_rows += group.num_rows

    def _apply_deltas(self, step: StepInput) -> None:
        for slot in step.freed_slots.tolist():
            del self._slots[slot]
        for added in step.added_slots:
            assert added.slot not in self._slots, f"slot {added.slot} is taken"
            assert added.num_cached_tokens % self.page_size == 0
            self._slots[added.slot] = _Slot(
                added.num_prompt_tokens,
                added.sampling,
                added.num_cached_tokens,
                added.pooling,
                added.stop_token_ids,
            )
        for slot, block in zip(
            step.appended_slots.tolist(), step.appended_blocks.tolist(), strict=True
        ):
            self._slots[slot].table.append(block)

    def _runs(self, step: StepInput, decodes: list[int]) -> list[tuple[int, int, list[int], bool]]:
        """(slot, first position, tokens, samples) in the order of the rows."""
        runs = []
        offset = 0
        for slot, length, samples in zip(
            step.prefill_slots.tolist(),
            step.prefill_lens.tolist(),
            step.prefill_samples.tolist(),
            strict=True,
        ):
            assert length > 0
            token_ids = step.prefill_ids[offset : offset + length].tolist()
            offset += length
            state = self._slots[slot]
            start = state.num_tokens or state.num_cached
            runs.append((slot, start, token_ids, samples))
            self.num_prefill_tokens += length
        assert offset == step.prefill_ids.size
        assert decodes is self._decode_order
        return runs + self._decodes()

    def _decodes(self) -> list[tuple[int, int, list[int], bool]]:
        runs = []
        for slot in self._decode_order:
            state = self._slots[slot]
            assert state.last_token is not None
            runs.append((slot, state.num_tokens, [state.last_token], True))
        return runs

    def _write(self, slot: int, token_ids: list[int]) -> None:
        """Write KV. A cached prefix is taken over as it stands when the slot's turn comes."""
        state = self._slots[slot]
        if state.num_tokens == 0 and state.num_cached:
            _, state.value = self._place(state, state.num_cached - 1)
            state.num_tokens = state.num_cached
        for token_id in token_ids:
            state.value = chain(state.value, token_id)
            position = state.num_tokens
            block = state.table[position // self.page_size]
            self._kv[block][position % self.page_size] = (token_id, state.value)
            state.num_tokens += 1

    def _place(self, state: _Slot, position: int) -> tuple[int, int]:
        return self._kv[state.table[position // self.page_size]][position % self.page_size]

    def _check_reads(self, slot: int) -> None:
        """All KV of the step is written now: every place of the slot must be its own."""
        state = self._slots[slot]
        value = 0
        for position in range(state.num_tokens):
            token_id, stored = self._place(state, position)
            value = chain(value, token_id)
            assert stored == value, f"slot {slot} reads foreign KV at {position}"
        assert value == state.value

    def _output(self, step: StepInput, runs: list[tuple[int, int, list[int], bool]]) -> StepOutput:
        tokens: list[int] = []
        logprobs: list[float] = []
        scores: list[PromptLogprobs] = []
        vectors: dict[int, list[float]] = {}
        for slot, start, token_ids, samples in runs:
            state = self._slots[slot]
            if samples:
                seed = state.sampling.seed
                token_id = draw(state.value, seed, self.vocab_size)
                state.last_token = token_id
                is_broken = seed in self.broken_seeds and token_id % 3 == 0
                tokens.append(-1 if is_broken else token_id)
                logprobs.append(-float(token_id))
            if state.pooling:
                assert not samples
                assert not (state.pooling == "mean" and state.num_cached)
                if start + len(token_ids) == state.num_prompt_tokens:
                    vectors[slot] = vector_of(state.value, state.sampling.seed, self.broken_seeds)
            count = min(start + len(token_ids), state.num_prompt_tokens - 1) - start
            if state.sampling.num_prompt_logprobs >= 0 and count > 0:
                scores.append(_scores(slot, start, count))
        num_rows = len(tokens)
        return StepOutput(
            step_id=step.step_id,
            token_ids=np.array(tokens, np.int32),
            logprobs=np.array(logprobs, np.float32),
            top_ids=np.tile(np.arange(5, dtype=np.int32), (num_rows, 1)),
            top_logprobs=np.zeros((num_rows, 5), np.float32),
            prompt_logprobs=scores,
            embedded_slots=np.array(list(vectors), np.int32) if vectors else None,
            embeddings=np.array(list(vectors.values()), np.float32) if vectors else None,
        )


def vector_of(value: int, seed: int, broken_seeds: frozenset[int] = frozenset()) -> list[float]:
    """The vector of a prompt whose tokens have this hash."""
    return [float("nan") if seed in broken_seeds else value / 2**32, 1.0]


def _scores(slot: int, start: int, count: int) -> PromptLogprobs:
    """The score of position p is -p."""
    return PromptLogprobs(
        slot=slot,
        start=start,
        logprobs=-np.arange(start + 1, start + count + 1, dtype=np.float32),
        top_ids=np.zeros((count, 5), np.int32),
        top_logprobs=np.zeros((count, 5), np.float32),
    )
