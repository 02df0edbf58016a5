"""One model over several worker processes: tensor parallel, pipeline parallel, and replicas."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from tests.checkpoints import VOCAB_SIZE, make_checkpoint
from tests.integration.engine_process import EngineProcess
from tests.reference import greedy_reference, mixed_prompts
from tokasaurus import LLM, SamplingParams
from tokasaurus.errors import EngineFailedError, TokasaurusError

SMALL: dict[str, Any] = {
    "kv_cache_num_tokens": 4096,
    "cpu_threads": 1,
    "dtype": "float32",
    "cpu_kernels": False,
    "max_tokens_per_forward": 256,
    "max_seqs_per_forward": 64,
    "show_progress": False,
}
MAX_TOKENS = 8
PROMPTS = mixed_prompts(24, VOCAB_SIZE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("parallel"))


@pytest.fixture(scope="module")
def expected(folder: Path) -> tuple[list[list[int]], list[list[float]]]:
    return greedy_reference(folder, PROMPTS, MAX_TOKENS)


def engine_processes() -> Iterator[psutil.Process]:
    for child in psutil.Process().children(recursive=True):
        if child.is_running() and "tokasaurus.launch.child" in child.cmdline():
            yield child


@pytest.mark.parametrize(
    "sizes",
    [
        {"tp_size": 2},
        {"pp_size": 2},
        # Eight workers that start on two cores.
        pytest.param({"dp_size": 2, "pp_size": 2, "tp_size": 2}, marks=pytest.mark.slow),
    ],
    ids=["tp", "pp", "dp-pp-tp"],
)
def test_tokens_are_those_of_one_process(
    sizes: dict[str, int], folder: Path, expected: tuple[list[list[int]], list[list[float]]]
) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True, logprobs=0)
    before = set(engine_processes())
    with LLM(str(folder), **sizes, **SMALL) as llm:
        mine = set(engine_processes()) - before
        workers = [p for p in mine if p.cmdline()[-1].startswith("worker")]
        assert len(workers) == np.prod(list(sizes.values()))
        outputs = llm.generate(PROMPTS, greedy, progress=False)
        drawn = SamplingParams(temperature=1.0, seed=3, n=2, top_p=0.9, max_tokens=4)
        first = llm.generate(PROMPTS[0], drawn, progress=False)
        again = llm.generate(PROMPTS[:4], drawn, progress=False)
    assert not psutil.wait_procs(workers, timeout=0)[1], "workers outlived the engine"
    assert [output.token_ids for output in outputs] == expected[0]
    for output, logprobs in zip(outputs, expected[1], strict=True):
        assert output.outputs[0].logprobs is not None
        ours = [entry.logprob for entry in output.outputs[0].logprobs]
        np.testing.assert_allclose(ours, logprobs, atol=1e-4)
    assert [o.token_ids for o in first[0].outputs] == [o.token_ids for o in again[0].outputs]


def test_a_killed_worker_ends_all_with_its_reason(folder: Path) -> None:
    lose_a_worker(folder, signal.SIGKILL, 1.0, "worker0.1 was killed by signal SIGKILL")


def test_a_stopped_worker_ends_all_with_its_reason(folder: Path) -> None:
    """Stopped before the first step: one that is only slow would exceed so short a time, too."""
    reason = "worker0.1 hangs or ended: the others waited for step_timeout_seconds"
    timeouts = {"step_timeout_seconds": 1.0, "shutdown_timeout_seconds": 0.5}
    lose_a_worker(folder, signal.SIGSTOP, 0.0, reason, **timeouts)


@pytest.mark.slow
def test_a_worker_stopped_between_steps_ends_all_with_its_reason(folder: Path) -> None:
    """Slow: waits for a step so long that no slow machine's exceeds it."""
    options = [f"{name}={value}" for name, value in SMALL.items() if name != "show_progress"]
    timeouts = ("step_timeout_seconds=20", "shutdown_timeout_seconds=0.5")
    with EngineProcess((f"model={folder}", "tp_size=2", *timeouts, *options)) as engine:
        engine.wait_until_ready()
        workers = list(engine.children().values())
        body = {"prompt": "x", "max_tokens": 400, "n": 16, "ignore_eos": True, "stream": True}
        url = f"{engine.url}/v1/completions"
        with httpx.stream("POST", url, json=body, timeout=120) as reply:
            lines = reply.iter_lines()
            assert next(lines).startswith("data: {")
            engine.children()["worker0.1"].suspend()
            ends = [line for line in lines if "error" in line]
        assert len(ends) == 1, ends
        assert engine.wait() == 1
    reason = "worker0.1 hangs or ended: the others waited for step_timeout_seconds"
    assert reason in engine.output
    assert not psutil.wait_procs(workers, timeout=60)[1]


def lose_a_worker(
    folder: Path, number: signal.Signals, seconds: float, reason: str, **options: float
) -> None:
    """After so long; whether requests are running by then does not change what is expected."""
    before = set(engine_processes())
    llm = LLM(str(folder), tp_size=2, **options, **SMALL)
    mine = [process for process in engine_processes() if process not in before]
    lost = next(process for process in mine if process.cmdline()[-1] == "worker0.1")
    if not seconds:
        lost.send_signal(number)
    errors: list[TokasaurusError] = []

    def generate() -> None:
        endless = SamplingParams(max_tokens=400, ignore_eos=True)
        try:
            for _ in range(1000):
                llm.generate([[5, 6]] * 32, endless, progress=False)
        except EngineFailedError as error:
            errors.append(error)

    thread = threading.Thread(target=generate)
    thread.start()
    if seconds:
        time.sleep(seconds)
        lost.send_signal(number)
    thread.join(timeout=60)
    assert not thread.is_alive()
    llm.close()
    assert reason in str(errors[0])
    assert not psutil.wait_procs(mine, timeout=60)[1]


def test_quantised_shares_stay_near_the_whole(
    folder: Path, expected: tuple[list[list[int]], list[list[float]]]
) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=1, logprobs=0)
    options = {**SMALL, "cpu_kernels": True, "quantization": "int8_weight_only"}
    with LLM(str(folder), tp_size=2, **options) as llm:
        outputs = llm.generate(PROMPTS, greedy, progress=False)
    same = [
        output.token_ids[0] == tokens[0]
        for output, tokens in zip(outputs, expected[0], strict=True)
    ]
    assert np.mean(same) > 0.8
    logprobs = [output.outputs[0].logprobs[0].logprob for output in outputs]
    np.testing.assert_allclose(logprobs, [values[0] for values in expected[1]], atol=0.1)
