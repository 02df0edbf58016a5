"""One engine for all tests that only talk to it: `engine` serves the demo model on a free port."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.integration.engine_process import EngineProcess

SMALL = ("kv_cache_num_tokens=32768", "cpu_threads=1", "dtype=float32")
"""Options that keep a test's engine small on a shared machine."""


@dataclass(frozen=True)
class Engine:
    """What a client needs to know."""

    url: str
    model: str
    process: EngineProcess
    resident: dict[str, int]
    """Bytes of each process in memory, before anybody asked for anything."""


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    with EngineProcess(SMALL) as process:
        process.wait_until_ready()
        resident = {name: p.memory_info().rss for name, p in process.children().items()}
        yield Engine(process.url, process.model, process, resident)
        assert process.popen.poll() is None, f"the engine died:\n{process.output}"
        assert process.stop() == 0, process.output
