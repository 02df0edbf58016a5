"""Plays the manager for runner tests: builds StepInputs for sequences that the test steers."""

from collections.abc import Sequence as TokenIds
from dataclasses import dataclass, field

import numpy as np

from tokasaurus.ipc.messages.to_manager import (
    Pooling,
    PromptLogprobs,
    StepOutput,
    TokenSampling,
)
from tokasaurus.ipc.messages.to_worker import AddedSlot, HydragenGroup, StepInput
from tokasaurus.worker.runner import GoesOn, ModelRunner, always


@dataclass
class DrivenSequence:
    """What the test knows of a sequence."""

    slot: int
    tokens: list[int]
    num_prompt_tokens: int
    blocks: list[int] = field(default_factory=list)
    num_computed: int = 0
    logprobs: list[float] = field(default_factory=list)
    top_ids: list[list[int]] = field(default_factory=list)
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)
    pooling: Pooling = ""
    vector: np.ndarray | None = None
    """What a prompt with `pooling` ends with."""

    @property
    def output(self) -> list[int]:
        return self.tokens[self.num_prompt_tokens :]


class StepDriver:
    """Queues changes, then runs them as one step."""

    def __init__(self, runner: ModelRunner, page_size: int) -> None:
        self._runner = runner
        self._page_size = page_size
        self._free_blocks = list(range(runner.num_blocks))[::-1]
        self._step_id = 0
        self._freed: list[int] = []
        self._added: list[AddedSlot] = []
        self._last_decoding: list[int] = []
        self._shared: list[tuple[int, int]] = []

    def add(
        self,
        slot: int,
        tokens: TokenIds[int],
        sampling: TokenSampling,
        *,
        num_prompt_tokens: int | None = None,
        shared_blocks: TokenIds[int] = (),
        pooling: Pooling = "",
        stop: tuple[int, ...] = (),
    ) -> DrivenSequence:
        """Seat a sequence; `shared_blocks` hold the KV of its first tokens already."""
        num_prompt = len(tokens) if num_prompt_tokens is None else num_prompt_tokens
        num_cached = len(shared_blocks) * self._page_size
        self._added.append(
            AddedSlot(slot, num_cached, num_prompt, sampling, pooling=pooling, stop_token_ids=stop)
        )
        self._shared += [(slot, block) for block in shared_blocks]
        return DrivenSequence(
            slot, list(tokens), num_prompt, list(shared_blocks), num_cached, pooling=pooling
        )

    def free(self, sequence: DrivenSequence, *, keep_blocks: bool = False) -> None:
        self._freed.append(sequence.slot)
        if not keep_blocks:
            self._free_blocks += sequence.blocks

    def run(
        self,
        prefill: TokenIds[tuple[DrivenSequence, int]] = (),
        decode: TokenIds[DrivenSequence] = (),
        hydragen: list[HydragenGroup] | None = None,
        *,
        max_passes: int = 1,
        goes_on: GoesOn = always,
    ) -> StepOutput:
        """Execute one step and hand its tokens to the sequences."""
        appended, self._shared = self._shared, []
        lens = [length for _, length in prefill] + [max_passes] * len(decode)
        sequences = [s for s, _ in prefill] + list(decode)
        ids: list[int] = []
        samples = []
        for sequence, length in zip(sequences, lens, strict=True):
            end = sequence.num_computed + length
            while len(sequence.blocks) * self._page_size < end:
                sequence.blocks.append(self._free_blocks.pop())
                appended.append((sequence.slot, sequence.blocks[-1]))
            if len(samples) < len(prefill):
                ids += sequence.tokens[sequence.num_computed : end]
                samples.append(end == len(sequence.tokens) and not sequence.pooling)
            sequence.num_computed = end
        decoding = [s.slot for s in decode]
        same = decoding == self._last_decoding and not self._freed and hydragen is None
        step = StepInput(
            step_id=self._step_id,
            freed_slots=np.array(self._freed, np.int32),
            added_slots=self._added,
            appended_slots=np.array([s for s, _ in appended], np.int32),
            appended_blocks=np.array([b for _, b in appended], np.int32),
            prefill_slots=np.array([s.slot for s, _ in prefill], np.int32),
            prefill_lens=np.array([length for _, length in prefill], np.int32),
            prefill_samples=np.array(samples, bool),
            prefill_ids=np.array(ids, np.int32),
            decode_slots=None if same else np.array(decoding, np.int32),
            hydragen_groups=None if same else hydragen or [],
            max_passes=max_passes,
        )
        self._last_decoding = decoding
        self._freed, self._added = [], []
        self._step_id += 1
        output = self._runner.execute(step, goes_on).result()
        assert output.step_id == step.step_id
        rows = [s for s, sampled in zip(sequences, samples, strict=False) if sampled]
        passes = np.atleast_2d(output.token_ids)
        for token_ids in passes:
            self._deliver(output, token_ids, rows + list(decode), sequences)
        for sequence in decode:
            sequence.num_computed -= max_passes - len(passes)
        return output

    def _deliver(
        self,
        output: StepOutput,
        token_ids: np.ndarray,
        rows: list[DrivenSequence],
        sequences: list[DrivenSequence],
    ) -> None:
        assert len(token_ids) == len(rows)
        for row, sequence in enumerate(rows):
            sequence.tokens.append(int(token_ids[row]))
            if output.logprobs is not None:
                sequence.logprobs.append(float(output.logprobs[row]))
            if output.top_ids is not None:
                sequence.top_ids.append(output.top_ids[row].tolist())
        for scores in output.prompt_logprobs:
            (owner,) = [s for s in sequences if s.slot == scores.slot]
            owner.prompt_logprobs.append(scores)
        if output.embedded_slots is not None and output.embeddings is not None:
            for slot, vector in zip(output.embedded_slots, output.embeddings, strict=True):
                (owner,) = [s for s in sequences if s.slot == slot]
                owner.vector = vector

    def finish(self, sequences: TokenIds[DrivenSequence], num_tokens: int) -> None:
        """Decode together until each has so many output tokens."""
        while running := [s for s in sequences if len(s.output) < num_tokens]:
            self.run(decode=running)
