"""Groups of sequences that share a prefix: found, worth it, and right while members leave."""

import numpy as np

from tests.unit.manager.harness import Harness, make_request


def _harness(**settings: int) -> Harness:
    return Harness(
        num_blocks=600,
        page_size=4,
        hydragen_min_group_size=4,
        hydragen_min_prefix_len=8,
        max_tokens_per_forward=4096,
        **settings,
    )


def _prompt(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 50, length).tolist()


def test_samples_of_a_prompt_are_one_group_until_few_are_left() -> None:
    harness = _harness()
    prompt = _prompt(0, 17)
    harness.submit(*(make_request(i, prompt, 15 + 2 * i) for i in range(12)))
    for _ in range(12):
        harness.tick()
    assert 0.5 < harness.engine.hydragen_share < 1
    harness.run()
    harness.check_tokens()
    assert harness.worker.num_grouped_rows > 12 * 4
    assert harness.engine.hydragen_share == 0


def test_deeper_groups_are_taken_where_they_save_more() -> None:
    """16 share 8 tokens, and 2 x 8 of them 80: two deep groups beat one of all."""
    harness = _harness()
    for branch in range(2):
        prompt = _prompt(0, 8) + _prompt(1 + branch, 73)
        harness.submit(*(make_request(8 * branch + i, prompt, 30) for i in range(8)))
    for _ in range(25):
        harness.tick()
    groups = harness.worker.groups
    assert [(group.num_rows, group.num_blocks) for group in groups] == [(8, 20), (8, 20)]


def test_a_shallow_group_is_taken_where_few_share_more() -> None:
    harness = _harness()
    harness.submit(*(make_request(i, _prompt(0, 40) + _prompt(i + 1, 9), 30) for i in range(9)))
    for _ in range(25):
        harness.tick()
    assert [(group.num_rows, group.num_blocks) for group in harness.worker.groups] == [(9, 10)]


def test_no_groups_without_the_capability_or_when_switched_off() -> None:
    for harness in (
        Harness(num_blocks=600, hydragen=False),
        Harness(num_blocks=600, use_hydragen=0),
    ):
        harness.submit(*(make_request(i, [1] * 200, 20) for i in range(12)))
        harness.run()
        assert harness.worker.num_grouped_rows == 0


def test_long_prompts_are_held_back_while_others_decode() -> None:
    harness = _harness(max_prefill_tokens_per_step=10)
    harness.submit(make_request(0, [1, 2, 3], 60))
    for _ in range(3):
        harness.tick()
    harness.worker.max_step_tokens = 0
    harness.submit(make_request(1, _prompt(3, 300), 5))
    for _ in range(20):
        harness.tick()
    assert harness.worker.max_step_tokens == 11
    harness.run()
    harness.check_tokens()
