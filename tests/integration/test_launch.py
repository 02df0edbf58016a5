"""Starting, watching and stopping real processes: exit codes, reasons, and nothing left behind."""

import os
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.integration.conftest import SMALL
from tests.integration.engine_process import EngineProcess
from tokasaurus.cli import toka_ping

NAMES = {"worker0.0", "manager0", "server0"}


@pytest.fixture
def socket_root() -> Iterator[Path]:
    """Where engines put their socket directories; short, because socket paths are limited."""
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        yield Path(folder)


@pytest.fixture
def launch(socket_root: Path) -> Iterator[Callable[..., EngineProcess]]:
    """Starts engines; when the test is over, checks that nothing of them is left."""
    engines: list[EngineProcess] = []
    processes: list[psutil.Process] = []

    def start(*options: str, ready: bool = True) -> EngineProcess:
        environment = {"TMPDIR": str(socket_root)}
        engine = EngineProcess((*SMALL, *options), environment).__enter__()
        engines.append(engine)
        if ready:
            engine.wait_until_ready()
            processes.extend(engine.children().values())
        return engine

    yield start
    for engine in engines:
        engine.__exit__(None, None, None)
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive
    assert list(socket_root.glob("toka-*")) == []


def test_serves_is_pinged_and_is_interrupted(
    launch: Callable[..., EngineProcess], socket_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = launch()
    assert engine.model == "demo"
    assert set(engine.children()) == NAMES
    (directory,) = socket_root.glob("toka-*")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for options in ([], ["chat=T"], ["stream=F"], ["stream=F", "chat=T", "temperature=0"]):
        assert toka_ping.main([f"url={engine.url}", "max_tokens=5", "prompt=Hello", *options]) == 0
        out, err = capsys.readouterr()
        assert out.strip()
        assert "[demo]" in err
        assert "tokens/s" in err
        assert ("TTFT" in err) == ("stream=F" not in options)
    assert toka_ping.main([f"url={engine.url}", "model=other"]) == 1
    assert "The server refused" in capsys.readouterr().err
    interrupt_a_stream(engine)


def interrupt_a_stream(engine: EngineProcess) -> None:
    body = {"prompt": "x", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{engine.url}/v1/completions", json=body, timeout=60) as reply:
        next(reply.iter_lines())
        os.killpg(engine.popen.pid, signal.SIGINT)  # what Ctrl-C does
        assert engine.wait() == 0, engine.output
    assert "Traceback" not in engine.output
    assert "ERROR" not in engine.output


def test_ping_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert toka_ping.main([f"port={port}"]) == 1
    err = capsys.readouterr().err
    assert f"No server answers at http://127.0.0.1:{port}" in err
    assert err.count("\n") == 1


def test_interrupt_stops_two_servers(launch: Callable[..., EngineProcess]) -> None:
    interrupt_a_stream(launch("server_workers=2"))


def test_stuck_process_is_killed_in_the_end(launch: Callable[..., EngineProcess]) -> None:
    engine = launch("shutdown_timeout_seconds=0.5")
    engine.children()["worker0.0"].suspend()
    assert engine.stop(signal.SIGTERM) == 0


def test_second_interrupt_kills_at_once(launch: Callable[..., EngineProcess]) -> None:
    engine = launch("shutdown_timeout_seconds=1000")
    children = engine.children()
    children["worker0.0"].suspend()
    engine.popen.send_signal(signal.SIGINT)
    psutil.wait_procs([children["server0"], children["manager0"]], timeout=60)
    assert engine.popen.poll() is None
    assert engine.stop(signal.SIGINT) == 0


def test_interrupt_while_starting(launch: Callable[..., EngineProcess]) -> None:
    engine = launch(ready=False)
    while len(psutil.Process(engine.popen.pid).children()) < len(NAMES):
        assert engine.popen.poll() is None, engine.output
        time.sleep(0.01)
    processes = engine.children().values()
    assert engine.stop(signal.SIGINT) == 0, engine.output
    assert not psutil.wait_procs(processes, timeout=60)[1]


@pytest.mark.parametrize("name", ["manager0", "worker0.0"])
def test_killed_process_stops_the_engine_with_a_reason(
    launch: Callable[..., EngineProcess], name: str
) -> None:
    """And ends requests that are running. test_server_workers.py kills a server."""
    engine = launch()
    body = {"prompt": "x", "max_tokens": 1500, "n": 16, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{engine.url}/v1/completions", json=body, timeout=60) as reply:
        lines = reply.iter_lines()
        next(lines)
        engine.children()[name].kill()
        rest = "\n".join(_until_broken(lines))
    assert "error" in rest
    assert engine.wait() == 1
    assert f"{name} was killed by signal SIGKILL" in engine.output


def _until_broken(lines: Iterator[str]) -> Iterator[str]:
    try:
        yield from lines
    except httpx.TransportError as error:
        yield f"error: {error}"


def test_killed_supervisor_leaves_no_process(
    launch: Callable[..., EngineProcess], socket_root: Path
) -> None:
    engine = launch()
    processes = list(engine.children().values())
    engine.popen.kill()
    assert not psutil.wait_procs(processes, timeout=60)[1]
    for directory in socket_root.glob("toka-*"):  # nobody was there to remove it
        for inbox in directory.iterdir():
            inbox.unlink()
        directory.rmdir()


def test_taken_port(launch: Callable[..., EngineProcess]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        engine = launch(f"port={taken.getsockname()[1]}", ready=False)
        assert engine.wait() == 1
    assert "Can't listen on port" in engine.output
    assert len(engine.lines) == 1


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("page_size=0", "page_size must be at least 1"),
        ("prot=1", "did you mean port?"),
        ("model=/no/such/folder", "no folder /no/such/folder"),
    ],
)
def test_bad_option(launch: Callable[..., EngineProcess], option: str, words: str) -> None:
    engine = launch(option, ready=False)
    assert engine.wait() == 1
    assert words in engine.output
    assert len(engine.lines) == 1


def test_broken_model_folder(launch: Callable[..., EngineProcess], tmp_path: Path) -> None:
    """config.json alone passes for a model until a process wants the rest of it."""
    (tmp_path / "config.json").write_text(
        '{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8}'
    )
    engine = launch(f"model={tmp_path}", ready=False)
    assert engine.wait() == 1
    assert " failed: " in engine.output
    assert str(tmp_path) in engine.output
    assert "Serving" not in engine.output


def test_start_up_has_a_deadline(launch: Callable[..., EngineProcess]) -> None:
    engine = launch("ready_timeout_seconds=0.05", ready=False)
    assert engine.wait() == 1
    assert "did not become ready within 0.05 seconds" in engine.output
