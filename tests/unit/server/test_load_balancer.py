"""The choice of a manager: cached prefixes attract, and load has the last word."""

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from tokasaurus.ipc.messages.to_manager import GenerateRequest, TokenSampling
from tokasaurus.server.load_balancer import LoadBalancer, PrefixIndex, prefix_hashes

_ids = itertools.count()


def prompt(seed: int, num_tokens: int, prefix: np.ndarray | None = None) -> np.ndarray:
    own = np.random.default_rng(seed).integers(0, 50_000, num_tokens).astype(np.int32)
    return own if prefix is None else np.concatenate([prefix, own])


def request_for(prompt_ids: np.ndarray, max_tokens: int = 100, salt: str = "") -> GenerateRequest:
    return GenerateRequest(
        request_id=next(_ids),
        prompt_ids=prompt_ids,
        sampling=TokenSampling(),
        max_tokens=max_tokens,
        cache_salt=salt,
    )


def send(
    balancer: LoadBalancer, prompt_ids: np.ndarray, num_samples: int = 1, max_tokens: int = 100
) -> tuple[int, list[GenerateRequest]]:
    rank = balancer.choose(prompt_ids)
    requests = [request_for(prompt_ids, max_tokens) for _ in range(num_samples)]
    for request in requests:
        balancer.add(rank, request)
    return rank, requests


def test_unrelated_prompts_go_where_least_is_outstanding() -> None:
    balancer = LoadBalancer(4)
    ranks = [send(balancer, prompt(seed, 200))[0] for seed in range(8)]
    assert sorted(ranks) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_idle_managers_take_turns_so_that_all_caches_fill() -> None:
    balancer = LoadBalancer(3)
    ranks = set()
    for seed in range(3):
        rank, [request] = send(balancer, prompt(seed, 300))
        balancer.remove(rank, request)
        ranks.add(rank)
    assert ranks == {0, 1, 2}


def test_next_turn_goes_where_the_conversation_is_cached() -> None:
    balancer = LoadBalancer(4)
    homes = {}
    for seed in range(12):
        homes[seed], [request] = send(balancer, prompt(seed, 500))
        balancer.remove(homes[seed], request)
    for seed in reversed(range(12)):
        rank, [request] = send(balancer, prompt(100 + seed, 50, prefix=prompt(seed, 500)))
        assert rank == homes[seed]
        balancer.remove(rank, request)


def test_samples_of_a_prompt_count_its_tokens_once() -> None:
    balancer = LoadBalancer(2)
    rank, _ = send(balancer, prompt(0, 6400), num_samples=10, max_tokens=100)
    assert balancer.outstanding_tokens()[rank] == 6400 + 10 * 100
    assert balancer.outstanding()[rank] == 10


def test_long_limits_do_not_count_as_long_outputs() -> None:
    balancer = LoadBalancer(2)
    rank, _ = send(balancer, prompt(0, 10), max_tokens=100_000)
    assert balancer.outstanding_tokens()[rank] == 10 + 512


def test_a_popular_prefix_spreads_when_its_manager_has_too_much_to_do() -> None:
    balancer = LoadBalancer(4)
    prefix = prompt(0, 2048)
    for seed in range(400):
        send(balancer, prompt(seed, 40, prefix=prefix))
    tokens = balancer.outstanding_tokens()
    assert min(balancer.outstanding()) > 0
    assert max(tokens) <= 1.25 * min(tokens) + 8192 + 2048 + 140


def test_a_short_common_prefix_hardly_matters() -> None:
    balancer = LoadBalancer(4)
    prefix = prompt(0, 64)
    ranks = [send(balancer, prompt(seed, 6000, prefix=prefix))[0] for seed in range(1, 5)]
    assert sorted(ranks) == [0, 1, 2, 3]


def test_salts_keep_prefixes_apart() -> None:
    balancer = LoadBalancer(2)
    prompt_ids = prompt(0, 640)
    for _ in range(3):
        balancer.add(0, request_for(prompt_ids, salt="a"))
    assert balancer.choose(prompt_ids) == 1
    assert balancer.choose(prompt_ids, "a") == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4), st.booleans()), max_size=60))
def test_counters_fall_back_to_zero(events: list[tuple[int, int, bool]]) -> None:
    balancer = LoadBalancer(3, max_chunks=5)
    in_flight = []
    for seed, num_chunks, ends in events:
        rank, requests = send(balancer, prompt(seed, 64 * num_chunks + 3), num_samples=2)
        in_flight += [(rank, request) for request in requests]
        if ends:
            balancer.remove(*in_flight.pop(len(in_flight) // 2))
        assert sum(balancer.outstanding()) == len(in_flight)
    for rank, request in in_flight:
        balancer.remove(rank, request)
    assert balancer.outstanding() == [0, 0, 0]
    assert balancer.outstanding_tokens() == [0, 0, 0]


def test_one_manager_takes_everything() -> None:
    balancer = LoadBalancer(1)
    rank, [request] = send(balancer, prompt(0, 1000), max_tokens=10)
    assert rank == 0
    assert balancer.outstanding_tokens() == [1010]
    balancer.remove(rank, request)
    assert balancer.outstanding_tokens() == [0]


def test_hashes_name_prefixes() -> None:
    first, second = prompt(1, 200), prompt(2, 200)
    joined = np.concatenate([first[:128], second])
    hashes = prefix_hashes(first, "")
    assert len(hashes) == 3
    assert prefix_hashes(joined, "")[:2] == hashes[:2]
    assert prefix_hashes(joined, "")[2] != hashes[2]
    assert prefix_hashes(first[:63], "") == []
    assert not set(prefix_hashes(first, "salt")) & set(hashes)
    swapped = first.copy()
    swapped[[3, 4]] = swapped[[4, 3]]
    assert not set(prefix_hashes(swapped, "")) & set(hashes)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 8)), min_size=1, max_size=30),
    st.integers(1, 12),
)
def test_index_stays_bounded_and_never_forgets_a_prefix_alone(
    uses: list[tuple[str, int]], max_chunks: int
) -> None:
    index = PrefixIndex(max_chunks)
    texts = {name: [hash((name, i)) for i in range(8)] for name in "abc"}
    for name, length in uses:
        known = index.match(texts[name][:length])
        assert index.add(texts[name][:length]) == known
        assert len(index) <= max_chunks
        assert index.match(texts[name]) >= min(length, max_chunks)
        for values in texts.values():
            depth = index.match(values)
            assert not any(index.match([value]) for value in values[depth:])


@pytest.mark.parametrize("num_tokens", [0, 1, 63])
def test_prompts_too_short_to_remember_are_spread(num_tokens: int) -> None:
    balancer = LoadBalancer(2)
    ranks = [send(balancer, prompt(0, num_tokens))[0] for _ in range(20)]
    assert ranks.count(0) == ranks.count(1)
