"""The first stage waits for exactly the tokens that it needs, so that the others stay at work."""

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from tests.unit.worker.test_micro_batches import make_step
from tokasaurus.model.parallel import PeerLostError
from tokasaurus.worker.micro_batches import MicroBatcher
from tokasaurus.worker.stage_exchange import StageExchange, StageLinks


@dataclass
class FakeWork:
    """Waiting for it writes what the last stage has drawn."""

    target: torch.Tensor
    tokens: list[int]
    is_done: bool = False

    def wait(self) -> None:
        assert not self.is_done, "waited for twice"
        self.target.copy_(torch.tensor(self.tokens))
        self.is_done = True


@dataclass
class FakeGroup:
    """Hands out tokens in the order in which they are drawn."""

    drawn: deque[list[int]] = field(default_factory=deque)
    works: list[FakeWork] = field(default_factory=list)

    def recv(self, tensors: list[torch.Tensor], source: int, tag: int) -> FakeWork:
        assert (source, tag) == (1, 0)
        self.works.append(FakeWork(tensors[0], self.drawn.popleft()))
        return self.works[-1]

    @property
    def num_outstanding(self) -> int:
        return sum(not work.is_done for work in self.works)


def first_stage(group: FakeGroup) -> StageExchange:
    links = StageLinks(stage=0, num_stages=2, hidden=None, tokens=group, members=(0, 1))
    return StageExchange(links, 4, torch.float32, torch.device("cpu"))


def expect(exchange: StageExchange, group: FakeGroup, slots: list[int], tokens: list[int]) -> None:
    group.drawn.append(tokens)
    exchange.expect_tokens(np.array(slots))


def received(exchange: StageExchange, slots: list[int]) -> list[tuple[list[int], list[int]]]:
    return [
        (of.tolist(), tokens.tolist())
        for of, tokens in exchange.receive_tokens(np.array(slots, np.int64))
    ]


def test_only_what_is_needed_is_waited_for() -> None:
    group = FakeGroup()
    exchange = first_stage(group)
    assert received(exchange, [0, 500]) == [], "nobody has drawn anything"
    expect(exchange, group, [0, 2], [10, 12])
    expect(exchange, group, [1], [21])
    expect(exchange, group, [2, 90], [32, 39])
    assert received(exchange, [5]) == []
    assert received(exchange, [0]) == [([0, 2], [10, 12])]
    assert group.num_outstanding == 2
    assert received(exchange, [0, 90]) == [([1], [21]), ([2, 90], [32, 39])]
    assert received(exchange, [0, 1, 2, 90]) == []
    expect(exchange, group, [1], [41])
    exchange.finish()
    assert group.num_outstanding == 0


def test_tokens_that_nobody_asks_for_do_not_pile_up() -> None:
    group = FakeGroup()
    exchange = first_stage(group)
    for slot in range(1000):
        expect(exchange, group, [slot], [slot])
        received(exchange, [])
        assert group.num_outstanding <= 33


@pytest.mark.parametrize("num_stages", [2, 3, 4])
def test_in_steady_decode_all_other_stages_have_a_micro_batch(num_stages: int) -> None:
    """While the first stage computes, one micro-batch per other stage is on its way."""
    batcher, group = MicroBatcher(num_stages), FakeGroup()
    exchange = first_stage(group)
    for _ in range(6):
        for part in batcher.split(make_step([], list(range(4 * num_stages)))):
            assert part.step.decode_slots is not None
            slots = part.step.decode_slots.tolist()
            assert len(slots) == 4
            exchange.receive_tokens(np.array(slots))
            assert group.num_outstanding == min(len(group.works), num_stages - 1)
            expect(exchange, group, slots, slots)


def test_a_peer_that_has_gone_is_told_apart() -> None:
    class Broken:
        def recv(self, *_: object) -> "Broken":
            return self

        def wait(self) -> None:
            raise RuntimeError("Connection closed by peer")

    links = StageLinks(stage=1, num_stages=2, hidden=Broken(), tokens=None, members=(2, 5))
    exchange = StageExchange(links, 4, torch.float32, torch.device("cpu"))
    with pytest.raises(PeerLostError, match="Connection closed") as caught:
        exchange.receive_hidden(3)
    assert caught.value.peers == (2, 5)
