"""Warm-up steps are ones that a manager could send."""

import pytest

from tokasaurus.worker.slot_table import SlotTable
from tokasaurus.worker.warmup import num_warm_up_blocks, warm_up_steps


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize(
    ("max_tokens", "max_seqs", "max_model_len", "page_size"),
    [(2048, 1024, 4096, 16), (2048, 64, 100, 16), (100, 100, 2, 1), (7, 1, 5, 64), (1, 1, 9, 2)],
)
def test_blocks_suffice(
    on_cpu: bool, max_tokens: int, max_seqs: int, max_model_len: int, page_size: int
) -> None:
    steps = warm_up_steps(
        max_tokens=max_tokens,
        max_seqs=max_seqs,
        max_model_len=max_model_len,
        page_size=page_size,
        on_cpu=on_cpu,
    )
    table = SlotTable(max_blocks_per_slot=-(-max_model_len // page_size) + 1, vocab_size=10)
    largest = min(max_tokens, 512) if on_cpu else max_tokens
    largest = min(largest, max_seqs * (max_model_len - 1))
    assert steps[0].prefill_lens.sum() == largest
    for step in steps:
        table.apply(step)
        assert step.appended_blocks.max(initial=0) < num_warm_up_blocks(steps)
        assert step.decode_slots is not None
        assert len(step.prefill_slots) + len(step.decode_slots) <= max_seqs
        for slots, lens in ((step.prefill_slots, step.prefill_lens), (step.decode_slots, 1)):
            table.kv_lens[slots] += lens
            assert (table.kv_lens[slots] <= max_model_len).all()
            assert (table.num_blocks[slots] * page_size >= table.kv_lens[slots]).all()
