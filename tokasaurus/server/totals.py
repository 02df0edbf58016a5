"""What all server processes of the engine have measured, brought together when it is shown."""

import asyncio
import os

import msgspec

from tokasaurus.observability.measurements import Measurements, Snapshot
from tokasaurus.server.engine_client import EngineClient
from tokasaurus.server.peers import Peers

_QUESTION = "measurements"


class _ServerReport(msgspec.Struct, frozen=True, kw_only=True):
    pid: int
    snapshot: Snapshot


class Totals:
    """Of a lone server, its own measurements as they are."""

    def __init__(self, engine: EngineClient, peers: Peers | None) -> None:
        self._engine = engine
        self._peers = peers
        self._refreshing = asyncio.Lock()
        self.measurements = engine.metrics.measurements if peers is None else Measurements()
        """As they were at the last `refresh`."""
        self.pids = [os.getpid()]
        """The server processes that these are about."""
        if peers is not None:
            peers.answer_with(_QUESTION, self._answer)

    async def refresh(self) -> None:
        """Raises ServerNotReadyError if another server does not say what it has measured."""
        if self._peers is None:
            self._engine.refresh_metrics()
            return
        async with self._refreshing:
            answers = await self._peers.ask_all(_QUESTION)
            reports = [msgspec.msgpack.decode(answer, type=_ServerReport) for answer in answers]
            reports.insert(0, self._own_report())
            self.measurements.become_total([report.snapshot for report in reports])
            self.pids = [report.pid for report in reports]

    def refresh_own(self) -> None:
        """For a last look, when nobody may be there to ask any more."""
        self._engine.refresh_metrics()

    async def _answer(self, payload: bytes) -> bytes:  # noqa: ARG002
        return msgspec.msgpack.encode(self._own_report())

    def _own_report(self) -> _ServerReport:
        self._engine.refresh_metrics()
        return _ServerReport(pid=os.getpid(), snapshot=self._engine.metrics.measurements.snapshot())
