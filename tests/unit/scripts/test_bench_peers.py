"""The peer benchmark: what it measures, how it takes turns, what it says to an engine."""

import io
import json

import pytest
from bench_peers import cut, in_turn, parse_args, run_all, same_first_tokens
from peers.comparison import METRICS, Comparison
from peers.protocol import Answer, Settings, serve, shared_prefix_length
from workloads import WORKLOADS, Workload

BASE = ["--model", "dir", "--peer", "openvino=python"]


class FakeEngine:
    """Answers at once; its outputs count up from the prompt's last token."""

    def __init__(self, name: str, order: list[str] | None = None) -> None:
        self.name = name
        self.order = order if order is not None else []

    def run(self, prompts: list[list[int]], num_output_tokens: int) -> Answer:
        self.order.append(self.name)
        return self.generate(prompts, num_output_tokens)

    def describe(self) -> str:
        return f"fake {self.name}"

    def generate(self, prompts: list[list[int]], num_output_tokens: int) -> Answer:
        return Answer(
            seconds=2.0,
            ttft_seconds=[0.5] * len(prompts),
            output_ids=[[prompt[-1] + i for i in range(num_output_tokens)] for prompt in prompts],
        )


def answer(seconds: float, ttft_seconds: list[float]) -> Answer:
    return Answer(seconds=seconds, ttft_seconds=ttft_seconds, output_ids=[[7]])


def test_what_metrics_mean() -> None:
    workload = Workload(num_seqs=4, num_shared=10, num_own=15, num_output_tokens=11)
    run = answer(4.5, [0.5, 1.0, 1.0, 2.0])
    assert {metric.title: metric.measure(workload, run) for metric in METRICS} == pytest.approx(
        {
            "W1 output tokens/s": 44 / 4.5,
            "W2 decode tokens/s": 10.0,
            "W2 TTFT ms": 1000.0,
            "W3 output tokens/s": 44 / 4.5,
            "W4 prefill tokens/s": 50.0,
        }
    )


def test_ratios_are_paired_within_rounds() -> None:
    """The machine is four times as fast in the third round: medians over rounds would mislead."""
    comparison = Comparison("ours")
    workload = Workload(num_seqs=1, num_own=1, num_output_tokens=12)
    for ours, theirs in [(1.0, 2.0), (4.0, 6.0), (0.25, 0.5)]:
        answers = {"ours": answer(ours, [ours / 2]), "theirs": answer(theirs, [theirs / 2])}
        comparison.add("W2", workload, answers)
    decode, ttft = (metric for metric in METRICS if metric.workload == "W2")
    assert comparison.median(ttft, "ours") == 500
    assert comparison.median_ratio(ttft, "theirs") == pytest.approx(2.0)
    assert comparison.median_ratio(decode, "theirs") == pytest.approx(2.0)
    table = comparison.table().splitlines()
    assert table[0] == "| engine | W2 decode tokens/s | W2 TTFT ms |"
    assert table[2:] == ["| ours | 22.0 | 500.0 |", "| theirs | 11.0 (2.00x) | 1000.0 (2.00x) |"]


def test_every_engine_is_first_in_some_round() -> None:
    order: list[str] = []
    engines = [FakeEngine(name, order) for name in ("a", "b", "c")]
    workload = Workload(num_seqs=1, num_own=1, num_output_tokens=1)
    for run in range(3):
        assert list(run_all(engines, workload, run, pause_seconds=0)) == ["a", "b", "c"]
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert in_turn(engines, 4)[0].name == "b"


def test_same_first_tokens() -> None:
    def first(*tokens: int) -> Answer:
        return Answer(seconds=1, ttft_seconds=[1], output_ids=[[token, 9] for token in tokens])

    answers = {"tokasaurus": first(1, 2, 3), "other": first(1, 5, 3)}
    assert same_first_tokens(answers) == {"tokasaurus": "3/3", "other": "2/3"}


def test_cut_keeps_what_a_workload_is_about() -> None:
    for name, workload in WORKLOADS.items():
        short = cut(workload)
        assert short.num_seqs * (short.num_shared + short.num_own) <= 4 * 512, name
        assert bool(short.num_shared) == bool(workload.num_shared)
        assert (short.num_seqs == 1) == (workload.num_seqs == 1)


def test_shared_prefix_leaves_each_prompt_a_token() -> None:
    assert shared_prefix_length([[1, 2, 3]]) == 0
    assert shared_prefix_length([[1, 2, 3], [1, 2, 4]]) == 2
    assert shared_prefix_length([[1, 2, 3], [1, 2, 3, 4]]) == 2
    assert shared_prefix_length([[1, 2], [3, 2]]) == 0


def test_an_engine_answers_line_by_line() -> None:
    settings = {
        "model": "dir",
        "converted": "",
        "dtype": "int8",
        "num_threads": 2,
        "options": ["a=1"],
    }
    requests = [settings, {"prompts": [[1, 2], [5]], "num_output_tokens": 3}]
    replies = io.StringIO()
    seen: list[Settings] = []

    def make_engine(given: Settings) -> FakeEngine:
        seen.append(given)
        return FakeEngine("x")

    serve(make_engine, io.StringIO("\n".join(map(json.dumps, requests))), replies)
    first, second = map(json.loads, replies.getvalue().splitlines())
    assert seen == [Settings(**settings)]
    assert first == {"description": "fake x"}
    assert Answer(**second).output_ids == [[2, 3, 4], [5, 6, 7]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--peer", "unknown=python"], "say ENGINE=PYTHON with one of"),
        (["--peer", "vllm"], "say ENGINE=PYTHON with one of"),
        (["--peer", "openvino=other"], "say each engine once"),
        (["vllm:dtype=float32"], "say ENGINE:key=value with one of tokasaurus, openvino"),
        (["openvino:dtype"], "say ENGINE:key=value"),
        (["--rounds", "0"], "say 1 or more"),
    ],
)
def test_refuses_what_it_does_not_know(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_args([*BASE, *words])
    assert message in " ".join(capsys.readouterr().err.split())


def test_options_go_to_one_engine() -> None:
    """Wherever they stand."""
    words = ["openvino:kv_cache_precision=f16", *BASE, "tokasaurus:page_size=32"]
    args = parse_args(words)
    assert args.peer == [("openvino", "python")]
    assert args.options == ["openvino:kv_cache_precision=f16", "tokasaurus:page_size=32"]
