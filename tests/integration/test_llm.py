"""LLM, serve and client against real processes on the demo model."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from tokasaurus import LLM, SamplingParams, client, serve
from tokasaurus.errors import (
    ConfigError,
    EngineFailedError,
    InvalidRequestError,
    ModelError,
    PromptTooLongError,
)
from tokasaurus.server.engine_metrics import EngineMetrics

SMALL = {"kv_cache_num_tokens": 32768, "cpu_threads": 1, "dtype": "float32"}
GREEDY = SamplingParams(temperature=0, max_tokens=8)


def engine_processes() -> list[psutil.Process]:
    """Those that this test process has started."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if child.is_running() and "tokasaurus.launch.child" in child.cmdline()
    ]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", show_progress=False, **SMALL) as llm:
        yield llm


def test_forms_of_prompts_agree(llm: LLM) -> None:
    text = "def add(a, b):\n"
    ids = llm.tokenizer.encode(text)
    (alone,) = llm.generate(text, GREEDY, progress=False)
    assert (alone.prompt, alone.prompt_token_ids) == (text, ids)
    assert alone.text == llm.tokenizer.decode(alone.token_ids)
    assert len(alone.token_ids) <= 8
    assert alone.finish_reason in ("length", "stop")
    for prompts in (ids, np.array(ids), [text], [ids], iter([text])):
        (output,) = llm.generate(prompts, GREEDY, progress=False)
        assert output.token_ids == alone.token_ids
        assert output.prompt_token_ids == ids


def test_vectors(llm: LLM) -> None:
    texts = ["def add(a, b):\n", "import os", "x = 1"] * 100
    vectors = llm.embed(iter(texts), progress=False)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[:3], vectors[-3:], atol=1e-4)
    ids = llm.tokenizer.encode(texts[0])
    np.testing.assert_allclose(llm.embed(ids, progress=False), vectors[:1], atol=1e-4)
    short = llm.embed(texts[:3], dimensions=5, progress=False)
    assert short.shape == (3, 5)
    last = llm.embed(texts[:3], pooling="last", progress=False)
    assert np.abs(last - vectors[:3]).max() > 0.01
    assert llm.embed([], progress=False).shape == (0, vectors.shape[1])
    for wrong in ({"dimensions": 10**6}, {"dimensions": 2.5}, {"pooling": "cls"}):
        with pytest.raises(InvalidRequestError):
            llm.embed("a", progress=False, **wrong)
    with pytest.raises(PromptTooLongError):
        llm.embed(["a", [5] * 10**5], progress=False)


@pytest.fixture
def num_passes_of_messages(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each message with tokens that came from a manager."""
    seen: list[int] = []
    note = EngineMetrics.note_tokens

    def see(
        metrics: EngineMetrics, rank: int, num_sequences: int, num_passes: int, *rest: Any
    ) -> None:
        note(metrics, rank, num_sequences, num_passes, *rest)
        seen.append(num_passes)

    monkeypatch.setattr(EngineMetrics, "note_tokens", see)
    return seen


def test_whole_answers_come_in_leases(llm: LLM, num_passes_of_messages: list[int]) -> None:
    """Their tokens are those of single steps, which a search for stop strings needs."""
    ids = llm.tokenizer.encode("import ")
    params = SamplingParams(max_tokens=300, ignore_eos=True, seed=5)
    (leased,) = llm.generate(ids, params, progress=False)
    num_leased = len(num_passes_of_messages)
    single = msgspec.structs.replace(params, stop=("\0 never",))
    (stepped,) = llm.generate(ids, single, progress=False)
    assert max(num_passes_of_messages[:num_leased]) > max(num_passes_of_messages[num_leased:])
    assert num_leased < len(num_passes_of_messages) - num_leased
    assert leased.token_ids == stepped.token_ids
    assert len(leased.token_ids) == 300

    place = next(i for i in range(100, 300) if leased.token_ids[i] not in leased.token_ids[:i])
    stopping = msgspec.structs.replace(params, stop_token_ids=(leased.token_ids[place],))
    (stopped,) = llm.generate(ids, stopping, progress=False)
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == leased.token_ids[: place + 1]


def test_outputs_are_in_input_order(llm: LLM) -> None:
    prompts = [f"x{i} = " for i in range(300)]
    params = [SamplingParams(temperature=0, max_tokens=1 + i % 7) for i in range(300)]
    outputs = llm.generate(prompts, params, progress=False)
    assert [output.prompt for output in outputs] == prompts
    for output, one in zip(outputs, params, strict=True):
        assert 1 <= len(output.token_ids) <= (one.max_tokens or 0)
    streamed = llm.generate((p for p in prompts[:40]), params[:40], progress=False)
    assert [o.prompt for o in streamed] == prompts[:40]
    assert llm.generate([], progress=False) == []


def test_samples_seeds_and_logprobs(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=5, temperature=1.0, max_tokens=6, logprobs=2)
    (first,) = llm.generate("import ", params, progress=False)
    again, *_ = llm.generate(["import "] * 4, params, progress=False)
    assert len(first.outputs) == 3
    assert [o.token_ids for o in first.outputs] == [o.token_ids for o in again.outputs]
    assert len({tuple(o.token_ids) for o in first.outputs}) > 1
    for sample in first.outputs:
        assert sample.logprobs is not None
        assert [entry.token_id for entry in sample.logprobs] == sample.token_ids
        assert all(entry.logprob <= 0 and len(entry.top) == 2 for entry in sample.logprobs)


def test_second_time_the_prompt_is_cached(llm: LLM) -> None:
    prompt = "# a comment that spans several blocks of the cache\n" * 8
    llm.generate(prompt, GREEDY, progress=False)
    (output,) = llm.generate(prompt, GREEDY, progress=False)
    assert output.num_cached_tokens > 0


def test_chat(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    chats = [[{"role": "user", "content": f"What is {i} + 3?"}] for i in range(5)]
    outputs = llm.chat(chats, SamplingParams(temperature=0, max_tokens=30))
    assert all(output.text for output in outputs)
    (alone,) = llm.chat(chats[2], SamplingParams(temperature=0, max_tokens=30), progress=False)
    assert alone.text == outputs[2].text
    bar = capsys.readouterr().err
    assert "5/5" in bar
    assert "tok/s" in bar


@pytest.mark.parametrize(
    ("prompts", "params"),
    [
        (["fine", ""], None),
        (["fine", [10**6]], None),
        (["fine", None], None),
        (["fine", [5] * 5000], None),
        (["fine"], [GREEDY, GREEDY]),
        (["fine"], SamplingParams(stop_token_ids=[10**6])),
        (iter(["fine", ""]), None),
    ],
    ids=repr,
)
def test_bad_input_is_refused_and_the_engine_goes_on(
    llm: LLM, prompts: object, params: object
) -> None:
    with pytest.raises(InvalidRequestError):
        llm.generate(prompts, params, progress=False)  # type: ignore[arg-type]
    assert llm.generate("x", GREEDY, progress=False)[0].token_ids


def test_too_long_prompt_says_so(llm: LLM) -> None:
    with pytest.raises(PromptTooLongError, match="maximum context length"):
        llm.generate([[5] * 5000], progress=False)


def test_threads_share_an_llm(llm: LLM) -> None:
    results: dict[int, list[str]] = {}

    def work(i: int) -> None:
        prompts = [f"{i} {j} =" for j in range(20)]
        outputs = llm.generate(prompts, GREEDY, progress=False)
        results[i] = [output.prompt or "" for output in outputs]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert results == {i: [f"{i} {j} =" for j in range(20)] for i in range(4)}


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Shells start what runs in the background with interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupt_cancels_what_runs(llm: LLM) -> None:
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))

    def generate_forever() -> None:
        timer.start()
        while True:
            llm.generate(["x"] * 64, SamplingParams(max_tokens=1500, ignore_eos=True))

    with pytest.raises(KeyboardInterrupt):
        generate_forever()
    assert llm.generate("x", GREEDY, progress=False)[0].token_ids


@pytest.mark.usefixtures("interruptible")
def test_who_comes_in_the_middle_of_leases_starts(
    llm: LLM, num_passes_of_messages: list[int]
) -> None:
    """And interrupts the long ones when it is done: they would run for many seconds."""
    ids = llm.tokenizer.encode("import ")
    long_ones_ended = threading.Event()

    def come() -> None:
        deadline = time.monotonic() + 60
        while max(num_passes_of_messages, default=1) == 1 and time.monotonic() < deadline:
            time.sleep(0.001)
        llm.generate(ids, SamplingParams(max_tokens=2, ignore_eos=True), progress=False)
        if not long_ones_ended.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    def generate_long() -> None:
        llm.generate(ids, SamplingParams(n=16, max_tokens=1900, ignore_eos=True), progress=False)
        long_ones_ended.set()

    thread = threading.Thread(target=come)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        generate_long()
    thread.join(timeout=60)
    assert max(num_passes_of_messages) > 1


def test_script_without_close_ends_cleanly(tmp_path: Path) -> None:
    """The main module has no guard and is not imported again; the end of the program closes."""
    script = tmp_path / "script.py"
    script.write_text(
        "from tokasaurus import LLM, SamplingParams\n"
        "print('started')\n"
        f"llm = LLM('demo', **{SMALL!r})\n"
        "print(llm.generate('x = ', SamplingParams(max_tokens=4))[0].finish_reason)\n"
    )
    with tempfile.TemporaryDirectory(prefix="t-") as sockets:
        result = subprocess.run(
            [sys.executable, str(script)],
            capture_output=True,
            text=True,
            timeout=200,
            env={**os.environ, "TMPDIR": sockets},
            check=False,
        )
        assert list(Path(sockets).glob("toka-*")) == []
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() in (["started", "length"], ["started", "stop"])
    assert "Traceback" not in result.stderr


def test_bad_options_start_nothing() -> None:
    before = engine_processes()
    num_threads = threading.active_count()
    with pytest.raises(ConfigError, match="did you mean page_size"):
        LLM("demo", pagesize=3)
    with pytest.raises(ConfigError, match=r"without a server, which port, api_key"):
        LLM("demo", port=8000, api_key="secret", page_size=32)
    with pytest.raises(ModelError, match="no folder"):
        LLM("/no/such/folder")
    assert engine_processes() == before
    assert threading.active_count() <= num_threads


def test_dead_worker_reaches_every_waiter_and_leaves_nothing() -> None:
    before = set(engine_processes())
    llm = LLM("demo", show_progress=False, **SMALL)
    mine = [process for process in engine_processes() if process not in before]
    errors: list[EngineFailedError] = []

    def wait_for_failure() -> None:
        endless = SamplingParams(max_tokens=1500, ignore_eos=True)
        try:
            for _ in range(1000):
                llm.generate(["x"] * 64, endless, progress=False)
        except EngineFailedError as error:
            errors.append(error)

    threads = [threading.Thread(target=wait_for_failure) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)  # whether requests are running by then does not change what is expected
    next(process for process in mine if process.cmdline()[-1] == "worker0.0").kill()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert len(errors) == 2
    assert all("worker0.0 was killed by signal SIGKILL" in str(error) for error in errors)
    with pytest.raises(EngineFailedError, match="SIGKILL"):
        llm.generate("x", progress=False)
    assert not psutil.wait_procs(mine, timeout=60)[1]
    llm.close()
    with pytest.raises(EngineFailedError):
        llm.generate("x", progress=False)


def test_serve_and_client() -> None:
    before = set(engine_processes())
    with serve("demo", port=0, show_progress=False, **SMALL) as server:
        mine = [process for process in engine_processes() if process not in before]
        assert len(mine) == 3
        models = client(server.url).models.list().data
        assert [model.id for model in models] == [server.model] == ["demo"]
        reply = client(server).completions.create(model="demo", prompt="x", max_tokens=3)
        assert reply.usage is not None
        assert reply.usage.completion_tokens <= 3
        server.wait(0)
        mine[0].kill()
        with pytest.raises(EngineFailedError, match="SIGKILL"):
            server.wait(60)
        assert server.failure is not None
    assert not psutil.wait_procs(mine, timeout=60)[1]
