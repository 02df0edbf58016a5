"""The slot table equals lists and dictionaries."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tokasaurus.ipc.messages.to_manager import TokenSampling
from tokasaurus.ipc.messages.to_worker import AddedSlot, StepInput
from tokasaurus.worker.slot_table import SlotTable

MAX_BLOCKS = 12


def make_step(
    freed: list[int], added: list[AddedSlot], appended: list[tuple[int, int]]
) -> StepInput:
    none = np.empty(0, np.int32)
    return StepInput(
        step_id=0,
        freed_slots=np.array(freed, np.int32),
        added_slots=added,
        appended_slots=np.array([slot for slot, _ in appended], np.int32),
        appended_blocks=np.array([block for _, block in appended], np.int32),
        prefill_slots=none,
        prefill_lens=none,
        prefill_samples=np.empty(0, bool),
        prefill_ids=none,
        decode_slots=None,
    )


@settings(max_examples=examples(40, searching=200))
@given(st.data())
def test_equals_lists(data: st.DataObject) -> None:
    table = SlotTable(max_blocks_per_slot=MAX_BLOCKS, vocab_size=50)
    tables: dict[int, list[int]] = {}
    samplings: dict[int, TokenSampling] = {}
    for step_id in range(data.draw(st.integers(1, 8))):
        freed = data.draw(st.lists(st.sampled_from(sorted(tables)), unique=True)) if tables else []
        for slot in freed:
            del tables[slot]
        free = st.integers(0, 300).filter(lambda slot: slot not in tables)
        new = data.draw(st.lists(free, unique=True, max_size=4))
        added = []
        for slot in new:
            samplings[slot] = TokenSampling(
                temperature=slot / 64, top_k=slot, seed=2**63 - 1 - slot, min_tokens=slot % 2,
                banned_until_min_tokens=(1, 60),
            )  # fmt: skip
            added.append(AddedSlot(slot, 16 * step_id, 5, samplings[slot]))
            tables[slot] = []
        appended = []
        for slot, block in data.draw(
            st.lists(st.tuples(st.sampled_from(sorted(tables) or [0]), st.integers(0, 999)))
        ):
            if slot in tables and len(tables[slot]) < MAX_BLOCKS:
                tables[slot].append(block)
                appended.append((slot, block))
        table.apply(make_step(freed, added, appended))
        for slot in new:
            assert table.kv_lens[slot] == 16 * step_id
        for slot, blocks in tables.items():
            assert table.num_blocks[slot] == len(blocks)
            assert table.block_tables[slot, : len(blocks)].tolist() == blocks
            assert table.seeds[slot] == samplings[slot].seed
            assert table.top_k[slot] == min(slot, 50)
            assert table.temperature[slot] == slot / 64
            banned = table.banned_ids.get(slot)
            assert (None if banned is None else banned.tolist()) == ([1] if slot % 2 else None)
        assert set(table.banned_ids) <= set(tables)
