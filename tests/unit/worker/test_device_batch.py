"""Batches equal ones that are built sequence by sequence."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tokasaurus.ipc.messages.to_manager import TokenSampling
from tokasaurus.ipc.messages.to_worker import AddedSlot, StepInput
from tokasaurus.worker.device_batch import BatchBuilder, DeviceBatch
from tokasaurus.worker.slot_table import SlotTable


def built(builder: BatchBuilder, step: StepInput) -> DeviceBatch:
    builder.apply(step)
    return builder.build(step)


@settings(max_examples=examples(60, searching=250))
@given(st.data())
def test_equals_sequence_by_sequence(data: st.DataObject) -> None:
    page_size = data.draw(st.sampled_from([1, 3, 16]))
    table = SlotTable(max_blocks_per_slot=60 // page_size + 2, vocab_size=100)
    builder = BatchBuilder(table, page_size)
    slots = data.draw(st.lists(st.integers(0, 90), unique=True, min_size=1, max_size=8))
    starts = {slot: data.draw(st.integers(0, 30)) for slot in slots}
    lens = {slot: data.draw(st.integers(1, 25)) for slot in slots}
    prefill = slots[: data.draw(st.integers(0, len(slots)))]
    decode = slots[len(prefill) :]
    for slot in decode:
        lens[slot] = 1
    samples = [data.draw(st.booleans()) for _ in prefill]
    tables = {
        slot: [100 * slot + i for i in range(-(-(starts[slot] + lens[slot]) // page_size) + 1)]
        for slot in slots
    }
    seeds = {slot: slot + 7 for slot in slots}
    ids = np.arange(sum(lens[slot] for slot in prefill), dtype=np.int32)
    batch = built(
        builder,
        StepInput(
            step_id=0,
            freed_slots=np.empty(0, np.int32),
            added_slots=[
                AddedSlot(
                    slot,
                    starts[slot],
                    3,
                    TokenSampling(seed=seeds[slot], min_tokens=20, banned_until_min_tokens=(4, 5)),
                )
                for slot in slots
            ],
            appended_slots=np.array([s for s in slots for _ in tables[s]], np.int32),
            appended_blocks=np.array([b for s in slots for b in tables[s]], np.int32),
            prefill_slots=np.array(prefill, np.int32),
            prefill_lens=np.array([lens[s] for s in prefill], np.int32),
            prefill_samples=np.array(samples, bool),
            prefill_ids=ids,
            decode_slots=np.array(decode, np.int32),
            hydragen_groups=[],
        ),
    )
    positions = [p for s in slots for p in range(starts[s], starts[s] + lens[s])]
    assert batch.positions.tolist() == positions
    owners = [s for s in slots for _ in range(lens[s])]
    where = [
        tables[s][p // page_size] * page_size + p % page_size
        for s, p in zip(owners, positions, strict=True)
    ]
    attention = batch.attention
    assert attention.slot_mapping.tolist() == where
    assert attention.num_prefill_rows == len(prefill)
    assert attention.query_lens.tolist() == [lens[s] for s in slots]
    assert attention.kv_lens.tolist() == [starts[s] + lens[s] for s in slots]
    for row, slot in enumerate(slots):
        begin, end = attention.block_indptr[row : row + 2]
        assert attention.block_ids[begin:end].tolist() == tables[slot][:-1]
    for name, dtype in (
        ("query_lens", np.int32),
        ("kv_lens", np.int32),
        ("block_indptr", np.int32),
        ("block_ids", np.int32),
        ("slot_mapping", np.int64),
    ):
        assert getattr(attention, name).dtype == dtype
    sampled = [s for s, sampled in zip(prefill, samples, strict=True) if sampled] + decode
    assert batch.sampled_slots.tolist() == sampled
    assert [owners[t] for t in batch.sampled_tokens] == sampled
    ends = [starts[s] + lens[s] for s in sampled]
    assert batch.sampling.positions.tolist() == ends
    assert batch.sampling.seeds.tolist() == [seeds[s] for s in sampled]
    early = [row for row, end in enumerate(ends) if end - 3 < 20]
    assert batch.sampling.banned_rows.tolist() == [row for row in early for _ in range(2)]
    assert batch.sampling.banned_ids.tolist() == [4, 5] * len(early)
    assert [table.kv_lens[s] for s in slots] == [starts[s] + lens[s] for s in slots]
    assert batch.prefill_ids.tolist() == ids.tolist()


def test_steady_decode_repeats_the_slots() -> None:
    table = SlotTable(max_blocks_per_slot=8, vocab_size=100)
    builder = BatchBuilder(table, 2)
    none = np.empty(0, np.int32)

    def step(appended: list[tuple[int, int]], **changes: object) -> StepInput:
        arguments: dict[str, object] = {
            "step_id": 0,
            "freed_slots": none,
            "appended_slots": np.array([s for s, _ in appended], np.int32),
            "appended_blocks": np.array([b for _, b in appended], np.int32),
            "prefill_slots": none,
            "prefill_lens": none,
            "prefill_samples": np.empty(0, bool),
            "prefill_ids": none,
            "decode_slots": None,
            **changes,
        }
        return StepInput(**arguments)  # type: ignore[arg-type]

    added = [AddedSlot(slot, 0, 1, TokenSampling()) for slot in (4, 2)]
    built(
        builder,
        step([(4, 10), (2, 20)], added_slots=added, decode_slots=np.array([4, 2], np.int32)),
    )
    built(builder, step([]))
    batch = built(builder, step([(2, 21), (4, 11)]))
    assert batch.decode_slots.tolist() == [4, 2]
    assert batch.positions.tolist() == [2, 2]
    assert batch.attention.block_ids.tolist() == [10, 11, 20, 21]
    assert batch.attention.slot_mapping.tolist() == [22, 42]
    batch = built(builder, step([], decode_slots=np.empty(0, np.int32)))
    assert len(batch.positions) == 0
