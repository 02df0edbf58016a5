"""An inbox tells whether something has come since all there was has been taken out."""

import select
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tokasaurus.ipc.channels import ZmqInbox, ZmqOutbox
from tokasaurus.ipc.messages.to_manager import CancelRequests, ToManager


@pytest.fixture
def address() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="t-") as folder:  # socket paths are limited
        yield f"ipc://{Path(folder) / 'inbox'}"


def test_descriptor_tells_of_what_came_after_a_drain(address: str) -> None:
    messages = [CancelRequests([number]) for number in range(3)]
    inbox: ZmqInbox[ToManager] = ZmqInbox(address, ToManager)
    with closing(inbox), closing(ZmqOutbox(address)) as outbox:
        assert inbox.descriptor is not None
        poll = select.poll()
        poll.register(inbox.descriptor, select.POLLIN)
        for message in messages[:2]:
            outbox.send(message)
        received = [inbox.receive(60), *inbox.drain()]
        while len(received) < 2:  # the second one was still on its way
            assert poll.poll(60_000), received
            received += inbox.drain()
        assert received == messages[:2]
        assert not inbox.may_have_more()
        assert poll.poll(0) == []
        outbox.send(messages[2])
        assert poll.poll(60_000)
        assert inbox.may_have_more()
        assert inbox.drain() == messages[2:]
        assert not inbox.may_have_more()
        assert poll.poll(0) == []
        assert inbox.receive(0) is None
