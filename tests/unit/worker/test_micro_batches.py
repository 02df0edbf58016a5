"""Micro-batches of a step are that step, cut so that a pipeline's stages all have work."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tokasaurus.ipc.messages.to_manager import TokenSampling
from tokasaurus.ipc.messages.to_worker import AddedSlot, HydragenGroup, StepInput
from tokasaurus.worker.micro_batches import MicroBatch, MicroBatcher

NONE = np.empty(0, np.int32)


def make_step(
    prefill: list[tuple[int, int, bool]],
    decode: list[int] | None,
    *,
    freed: list[int] | None = None,
    groups: list[HydragenGroup] | None = None,
) -> StepInput:
    """`prefill`: slot, length and whether it samples, of each chunk."""
    num_tokens = sum(length for _, length, _ in prefill)
    return StepInput(
        step_id=7,
        freed_slots=np.array(freed or [], np.int32),
        added_slots=[AddedSlot(slot, 0, 1, TokenSampling()) for slot, _, _ in prefill],
        appended_slots=np.array([slot for slot, _, _ in prefill], np.int32),
        appended_blocks=np.arange(len(prefill), dtype=np.int32),
        prefill_slots=np.array([slot for slot, _, _ in prefill], np.int32),
        prefill_lens=np.array([length for _, length, _ in prefill], np.int32),
        prefill_samples=np.array([samples for _, _, samples in prefill], bool),
        prefill_ids=np.arange(num_tokens, dtype=np.int32),
        decode_slots=None if decode is None else np.array(decode, np.int32),
        hydragen_groups=groups,
    )


def output_slots(step: StepInput) -> list[int]:
    assert step.decode_slots is not None
    return [*step.prefill_slots[step.prefill_samples].tolist(), *step.decode_slots.tolist()]


def check(step: StepInput, batches: list[MicroBatch], num_parts: int) -> None:
    assert 1 <= len(batches) <= num_parts
    assert [b.step.added_slots for b in batches[1:]] == [[]] * (len(batches) - 1)
    assert batches[0].step.added_slots == step.added_slots
    for name in ("freed_slots", "appended_slots", "appended_blocks", "prefill_ids"):
        whole = np.concatenate([getattr(batch.step, name) for batch in batches])
        assert whole.tolist() == getattr(step, name).tolist(), name
    # Chunks in order, each in one piece or cut, and sampled once, after its last piece.
    pieces = [
        (slot, length)
        for batch in batches
        for slot, length in zip(
            batch.step.prefill_slots.tolist(), batch.step.prefill_lens.tolist(), strict=True
        )
    ]
    order = [slot for i, (slot, _) in enumerate(pieces) if i == 0 or pieces[i - 1][0] != slot]
    assert order == step.prefill_slots.tolist()
    for slot, length in zip(step.prefill_slots.tolist(), step.prefill_lens.tolist(), strict=True):
        assert sum(n for s, n in pieces if s == slot) == length
    expected = output_slots(step)
    found: dict[int, int] = {}
    for batch in batches:
        assert batch.rows is not None
        found.update(zip(batch.rows.tolist(), output_slots(batch.step), strict=True))
    assert [found[row] for row in range(len(expected))] == expected


def test_one_part_is_the_step_itself() -> None:
    step = make_step([(0, 3, True)], [4, 5])
    (batch,) = MicroBatcher(1).split(step)
    assert batch.step is step
    assert batch.rows is None


@given(
    st.integers(2, 4),
    st.lists(st.tuples(st.integers(1, 300), st.booleans()), max_size=6),
    st.integers(0, 40),
)
def test_parts_make_up_the_step(
    num_parts: int, chunks: list[tuple[int, bool]], num_decodes: int
) -> None:
    prefill = [(100 + i, length, samples) for i, (length, samples) in enumerate(chunks)]
    step = make_step(prefill, list(range(num_decodes))[::-1])
    if not prefill and not num_decodes:
        assert len(MicroBatcher(num_parts).split(step)) == 1
        return
    batches = MicroBatcher(num_parts).split(step)
    check(step, batches, num_parts)
    loads = [len(b.step.prefill_ids) + len(output_slots(b.step)) for b in batches]
    if sum(loads) > 400:
        assert len(batches) == num_parts


def test_a_sequence_decodes_in_the_same_part_and_parts_stay_balanced() -> None:
    batcher, rng = MicroBatcher(2), np.random.default_rng(0)
    running: list[int] = []
    free = list(range(64))
    part_of: dict[int, int] = {}
    for _ in range(200):
        leaving = [slot for slot in running if rng.random() < 0.1]
        running = [slot for slot in running if slot not in leaving]
        for slot in leaving:
            part_of.pop(slot, None)
        new = [free.pop() for _ in range(min(len(free), int(rng.integers(0, 6))))]
        prefill = [(slot, int(rng.integers(1, 40)), True) for slot in new]
        step = make_step(prefill, running, freed=leaving)
        free += leaving
        batches = batcher.split(step)
        if len(batches) == 2:
            for part, batch in enumerate(batches):
                assert batch.step.decode_slots is not None
                for slot in batch.step.decode_slots.tolist():
                    assert part_of.setdefault(slot, part) == part
        running += new
        if len(batches) == 2 and len(step.prefill_ids) > 40:
            sizes = [len(b.step.prefill_ids) + len(b.step.decode_slots) for b in batches]
            assert abs(sizes[0] - sizes[1]) <= 64


def test_an_order_that_is_not_repeated_is_remembered() -> None:
    batcher = MicroBatcher(2)
    batcher.split(make_step([], [3, 1, 2, 0]))
    step = make_step([], None, freed=[1])
    slots = [s for b in batcher.split(step) for s in b.step.decode_slots.tolist()]
    assert sorted(slots) == [0, 2, 3]


def test_groups_are_cut_with_their_rows() -> None:
    batcher = MicroBatcher(2)
    groups = [HydragenGroup(1, 6, 4), HydragenGroup(7, 1, 9)]
    batches = batcher.split(make_step([], list(range(8)), groups=groups))
    assert [b.step.decode_slots.tolist() for b in batches] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert batches[0].step.hydragen_groups == [HydragenGroup(1, 3, 4)]
    assert batches[1].step.hydragen_groups == [HydragenGroup(0, 3, 4)]
