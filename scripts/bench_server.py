"""CPU that the server costs per streamed token and per request; beside it a bare FastAPI app that
sends the same bytes.

The server is the real process; an instant engine and raw clients (`server_load.py`) stand in for
the rest. Of a step, every stream gets its tokens in one message, and the next step begins when all
clients have them. The bare app yields the pieces that the server wrote, one per turn of its event
loop. Both are measured in turns, in short rounds, because a machine's speed wanders: the ratio is
the median over rounds of (the server's CPU without tokenizing) / (the bare app's).
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

import uvloop
from server_cost import HEADER, Result, Round, Target, result_of, row_of
from server_load import InstantEngine, body_of, chunks_of, post

from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.config.model_files import resolve_model
from tokasaurus.ipc.addresses import Addresses
from tokasaurus.ipc.channels import ZmqInbox
from tokasaurus.ipc.messages.to_supervisor import Failed, Ready, ToSupervisor
from tokasaurus.launch.child import ChildOrders
from tokasaurus.launch.child_process import ChildProcess
from tokasaurus.launch.cpu_share import thread_environment
from tokasaurus.launch.topology import build_topology
from tokasaurus.tokenization.chat_template import ChatTemplate
from tokasaurus.tokenization.tokenizer import Tokenizer

TEXT = "The little dog ran to the old house by the river and sat down in the warm sun. "
PROMPT = TEXT
PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
START_SECONDS = 60


class Bench:
    """The server and the bare app, both running."""

    def __init__(
        self,
        engine: InstantEngine,
        server: Target,
        bare: Target,
        folder: Path,
        tokenize: Callable[[str], object],
    ) -> None:
        """`tokenize` does for an endpoint's request what the server does for its prompt."""
        self.tokenize = tokenize
        self.engine = engine
        self.server = server
        self.bare = bare
        self._folder = folder

    async def stream(
        self, endpoint: str, num_streams: int, together: int, num_tokens: int, runs: int
    ) -> Result:
        """`num_tokens` are those of all streams in one run."""
        num_steps = max(8, num_tokens // (num_streams * together))
        total = num_steps * num_streams * together
        request = _request(endpoint, stream=True)
        rounds = []
        for run in range(runs + 1):
            clients = await self.server.connect(num_streams)
            clients.send_all(request)
            await self.engine.wait_for(num_streams)
            num_first = 2 if endpoint == "chat" else 1  # a chat's first event tells the role
            self.engine.step(1)
            await clients.expect_events(num_first)
            before = [c.num_reads for c in clients.connections]
            began, used = time.perf_counter(), self.server.cpu()
            for step in range(num_steps):
                self.engine.step(together)
                await clients.expect_events(num_first + step + 1)
            used, elapsed = self.server.cpu().since(used, total), time.perf_counter() - began
            num_reads = sum(c.num_reads for c in clients.connections) - sum(before)
            self.engine.finish()
            await clients.expect_responses(1)
            pieces = chunks_of(clients.connections[0].received)
            clients.close()
            bare = await self._bare(pieces, num_streams, stream=True, times=1)
            if run:  # the first warms up
                rounds.append(
                    Round(
                        ours=used,
                        bare=bare / (len(pieces) * together),
                        tokenizing=0.0,
                        per_second=total / elapsed,
                        writes=num_reads / (num_steps * num_streams),
                    )
                )
        return result_of(endpoint, "stream", num_streams, together, rounds)

    async def whole(self, endpoint: str, num_clients: int, times: int, runs: int) -> Result:
        """Each client asks `times` times for one token."""
        total = num_clients * times
        request = _request(endpoint, stream=False, max_tokens=1)
        rounds = []
        for run in range(runs + 1):
            clients = await self.server.connect(num_clients)
            began, used = time.perf_counter(), self.server.cpu()
            for connection in clients.connections:
                connection.send(request, times=times)
            await clients.expect_responses(times)
            used, elapsed = self.server.cpu().since(used, total), time.perf_counter() - began
            body = body_of(clients.connections[0].received)
            clients.close()
            bare = await self._bare([body], num_clients, stream=False, times=times)
            if run:
                rounds.append(
                    Round(
                        ours=used,
                        bare=bare / times,
                        tokenizing=tokenizing_seconds(self.tokenize, endpoint),
                        per_second=total / elapsed,
                        writes=1.0,
                    )
                )
        return result_of(endpoint, "whole", num_clients, 1, rounds)

    async def _bare(
        self, pieces: list[bytes], num_clients: int, *, stream: bool, times: int
    ) -> float:
        """CPU seconds per client."""
        (self._folder / "pieces").write_text(json.dumps([piece.decode() for piece in pieces]))
        clients = await self.bare.connect(num_clients)
        clients.send_all(post("/load", {}))
        await clients.expect_responses(1)
        request = post("/stream" if stream else "/whole", _body("completions", stream=stream))
        used = self.bare.cpu()
        for connection in clients.connections:
            connection.send(request, times=times)
        await clients.expect_responses(1 + times)
        used = self.bare.cpu().since(used, num_clients)
        clients.close()
        return used.total


def _body(endpoint: str, *, stream: bool, max_tokens: int = 100_000) -> dict[str, object]:
    body: dict[str, object] = {"model": "demo", "max_tokens": max_tokens, "temperature": 0.7}
    if endpoint == "chat":
        body["messages"] = [{"role": "user", "content": PROMPT}]
    else:
        body["prompt"] = PROMPT
    return body | ({"stream": True} if stream else {})


def _request(endpoint: str, *, stream: bool, max_tokens: int = 100_000) -> bytes:
    return post(PATHS[endpoint], _body(endpoint, stream=stream, max_tokens=max_tokens))


def tokenizing_seconds(tokenize: Callable[[str], object], endpoint: str) -> float:
    """CPU time of encoding the prompt of a request in this process."""
    times = []
    for _ in range(100):
        began = time.thread_time()
        tokenize(endpoint)
        times.append(time.thread_time() - began)
    return statistics.median(times)


def _tokenize_with(tokenizer: Tokenizer, folder: Path) -> Callable[[str], object]:
    template = ChatTemplate.load(folder, tokenizer.settings, tokenizer.named_tokens)
    assert template is not None, "the demo model chats"
    texts = {
        "chat": template.render([{"role": "user", "content": PROMPT}]),
        "completions": PROMPT,
    }
    return lambda endpoint: tokenizer.encode(texts[endpoint])


async def measure(args: argparse.Namespace) -> list[Result]:
    model = resolve_model("demo")
    tokenizer = Tokenizer.load(model)
    addresses = Addresses.create()
    supervisor: ZmqInbox[ToSupervisor] = ZmqInbox(addresses.supervisor(), ToSupervisor)
    token_ids = tokenizer.encode(TEXT, add_special_tokens=False)
    engine = InstantEngine(addresses, token_ids, tokenizer.vocab_size)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = {"port": 0, "state_dir": str(folder / "state")}
        config = EngineConfig().replace(**options)
        child = _start_server(config, addresses)
        bare = await asyncio.to_thread(_start_bare_app, folder)
        try:
            url = await asyncio.to_thread(_wait_until_ready, supervisor)
            port = await _wait_for_file(folder / "port")
            server = Target(child.pid, urlsplit(url).port or 0)
            tokenize = _tokenize_with(tokenizer, model)
            bench = Bench(engine, server, Target(bare.pid, port), folder, tokenize)
            print(f"server {child.pid}, bare app {bare.pid}", file=sys.stderr)
            return await _run_all(bench, args)
        finally:
            child.terminate()
            bare.terminate()
            await engine.close()
            await asyncio.to_thread(_wait_for_end, child, bare)
            supervisor.close()
            addresses.remove()


def _start_server(config: EngineConfig, addresses: Addresses) -> ChildProcess:
    spec = build_topology(config, with_server=True)[-1]
    orders = ChildOrders(
        spec=spec,
        addresses=addresses,
        config_json=config.to_json(),
        supervisor_pid=os.getpid(),
    )
    environment = thread_environment(config, spec, os.environ, 1)
    return ChildProcess(orders, environment, print)


def _start_bare_app(folder: Path) -> subprocess.Popen[bytes]:
    script = Path(__file__).parent / "bare_app.py"
    return subprocess.Popen([sys.executable, script, folder])


def _wait_for_end(child: ChildProcess, bare: subprocess.Popen[bytes]) -> None:
    bare.wait()
    while child.exit_code is None:
        time.sleep(0.05)
    child.close()


def _wait_until_ready(inbox: ZmqInbox[ToSupervisor]) -> str:
    deadline = time.monotonic() + START_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        match inbox.receive(left):
            case Ready(text=url):
                return url
            case Failed(reason=reason):
                raise RuntimeError(reason)
    raise RuntimeError("the server did not become ready")


async def _wait_for_file(path: Path) -> int:
    for _ in range(START_SECONDS * 20):
        if await asyncio.to_thread(path.exists):
            return int(await asyncio.to_thread(path.read_text))
        await asyncio.sleep(0.05)
    raise RuntimeError("the bare app did not become ready")


async def _run_all(bench: Bench, args: argparse.Namespace) -> list[Result]:
    jobs: list[Callable[[], Awaitable[Result]]] = []
    for endpoint in args.endpoints:
        for num_streams in args.streams:
            for together in args.together:
                jobs.append(
                    lambda e=endpoint, n=num_streams, t=together: bench.stream(
                        e, n, t, args.num_tokens, args.runs
                    )
                )
        if args.num_requests:
            times = max(1, args.num_requests // args.clients)
            jobs.append(lambda e=endpoint, t=times: bench.whole(e, args.clients, t, args.runs))
    results = []
    print(HEADER)
    for job in jobs:
        result = await job()
        print(row_of(result), flush=True)
        results.append(result)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoints", nargs="+", choices=PATHS, default=list(PATHS))
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 64, 256])
    parser.add_argument("--together", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--num-tokens", type=int, default=5_000, help="per round, all streams")
    parser.add_argument("--clients", type=int, default=64, help="that ask for one token each")
    parser.add_argument("--num-requests", type=int, default=640, help="per round; 0: none")
    parser.add_argument("--runs", type=int, default=11, help="rounds")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        results = runner.run(measure(args))
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(result) for result in results], indent=1))


if __name__ == "__main__":
    main()
