"""What the server processes of one engine ask each other, besides the port that they share.

A question has a name and bytes; who asks waits for the answer, with a deadline. Whoever can enter
the engine's private directory is trusted.
"""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from tokasaurus.ipc.addresses import Addresses
from tokasaurus.ipc.channels import Outbox, ZmqOutbox
from tokasaurus.ipc.messages.to_server import PeerAnswer, PeerQuestion
from tokasaurus.server.errors import ServerNotReadyError

log = logging.getLogger(__name__)

Answerer = Callable[[bytes], Awaitable[bytes]]

_DEADLINE_SECONDS = 10.0


class _Asked(NamedTuple):
    server_index: int
    answered: "asyncio.Future[bytes]"


class Peers:
    """One server's view of the others. `start` and everything after it belong to one event loop."""

    def __init__(self, server_index: int, num_servers: int, addresses: Addresses) -> None:
        self.server_index = server_index
        self._addresses = {
            index: addresses.server(index) for index in range(num_servers) if index != server_index
        }
        self._outboxes: dict[int, Outbox] = {}
        self._answerers: dict[str, Answerer] = {}
        self._asked: dict[int, _Asked] = {}
        self._ids = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def leads(self) -> bool:
        """This server does what only one of them may do."""
        return self.server_index == 0

    @property
    def others(self) -> list[int]:
        return list(self._addresses)

    def start(self, outboxes: dict[int, Outbox] | None = None) -> None:
        """`outboxes` replace the sockets to the others, by server index."""
        self._outboxes = outboxes or {i: ZmqOutbox(a) for i, a in self._addresses.items()}

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for _, answered in self._asked.values():
            answered.cancel()
        for outbox in self._outboxes.values():
            outbox.close()

    def answer_with(self, name: str, answerer: Answerer) -> None:
        """How questions of that name are answered here; before `start`."""
        self._answerers[name] = answerer

    async def ask(self, server_index: int, name: str, payload: bytes = b"") -> bytes:
        """Raises ServerNotReadyError if the answer does not come in time, or is a failure."""
        question_id = next(self._ids)
        answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        question = PeerQuestion(
            server_index=self.server_index, question_id=question_id, name=name, payload=payload
        )
        self._asked[question_id] = _Asked(server_index, answered)
        try:
            self._outboxes[server_index].send(question)
            return await asyncio.wait_for(answered, _DEADLINE_SECONDS)
        except TimeoutError:
            raise ServerNotReadyError(
                f"server{server_index} did not answer within {_DEADLINE_SECONDS:g} s; try again."
            ) from None
        finally:
            del self._asked[question_id]

    async def ask_all(self, name: str, payload: bytes = b"") -> list[bytes]:
        """The answers of all others. Raises ServerNotReadyError if one is missing."""
        return await asyncio.gather(*(self.ask(index, name, payload) for index in self.others))

    def receive(self, message: PeerQuestion | PeerAnswer) -> None:
        """Whatever comes from another server; never raises."""
        match message:
            case PeerQuestion():
                task = asyncio.get_running_loop().create_task(self._answer(message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case PeerAnswer(question_id=question_id):
                asked = self._asked.get(question_id)
                if asked is None or asked.answered.done():
                    return  # too late
                if message.has_failed:
                    asked.answered.set_exception(
                        ServerNotReadyError(f"server{asked.server_index} failed; its log says why.")
                    )
                else:
                    asked.answered.set_result(message.payload)

    async def _answer(self, question: PeerQuestion) -> None:
        payload, has_failed = b"", False
        try:
            payload = await self._answerers[question.name](question.payload)
        except Exception:
            log.exception("can't answer server%d about %s", question.server_index, question.name)
            has_failed = True
        self._outboxes[question.server_index].send(
            PeerAnswer(question_id=question.question_id, payload=payload, has_failed=has_failed)
        )
