"""Workloads to replay, made from a seed: each is a function of its name's parameters alone."""

from collections.abc import Callable

import numpy as np

from simulation.workload import Prompt, Trace, continued, text

_GOLDEN_RATIO = (5**0.5 - 1) / 2


def monkeys(
    *,
    prompts: int = 64,
    samples: int = 512,
    few_shot_tokens: int = 600,
    question_tokens: int = 110,
    output_tokens: int = 160,
    max_tokens: int = 1024,
    seed: int = 0,
) -> Trace:
    """Repeated sampling: every prompt many times, all at once; a prompt decides the typical length.

    The lengths of one prompt's samples are lognormal around a median that is itself lognormal.
    """
    rng = np.random.default_rng(seed)
    few_shot = text(int(rng.integers(2**32)), 0, few_shot_tokens)
    for _ in range(prompts):
        question = _length(rng, question_tokens, 0.4, most=4 * question_tokens)
        median = output_tokens * rng.lognormal(0.0, 0.35)
        lengths = np.rint(rng.lognormal(np.log(median), 0.45, samples)).astype(np.int64)
        yield Prompt(
            arrival_seconds=0.0,
            prompt_ids=np.concatenate([few_shot, text(int(rng.integers(2**32)), 0, question)]),
            output_lens=np.maximum(lengths, 1),
            output_keys=rng.integers(2**32, size=samples, dtype=np.uint32),
            max_tokens=max_tokens,
            predictor_key="monkeys",
        )


def chat(
    *,
    requests: int = 15_000,
    rate: float = 150.0,
    turns: float = 3.5,
    user_tokens: int = 60,
    output_tokens: int = 180,
    max_tokens: int = 2048,
    system_tokens: int = 200,
    think_seconds: float = 15.0,
    max_context: int = 16_384,
    streamed: float = 1.0,
    seed: int = 0,
) -> Trace:
    """A ShareGPT-like mix: conversations come as a Poisson process and take several turns.

    `rate` counts requests per second in the long run. Every third caller sets a quarter of
    `max_tokens`. Four applications with system prompts of their own share the service. `streamed`
    is the share of the conversations whose client reads every token as it comes.
    """
    rng = np.random.default_rng(seed)
    systems = [text(int(rng.integers(2**32)), 0, system_tokens * (i + 1) // 2) for i in range(4)]
    now = 0.0
    for index in range(max(1, round(requests / turns))):
        now += rng.exponential(turns / rate)
        session = _Session(
            seed=int(rng.integers(2**63)),
            num_turns=int(rng.geometric(1 / turns)),
            think_seconds=think_seconds,
            said_tokens=(user_tokens, 1.0),
            output_tokens=(output_tokens, 0.9),
            max_tokens=max_tokens if rng.random() < 2 / 3 else max_tokens // 4,
            max_context=max_context,
            predictor_key="chat",
            is_streamed=(index * _GOLDEN_RATIO) % 1 < streamed,
        )
        yield session.begin(now, systems[int(rng.integers(4))])


def documents(
    *,
    requests: int = 2000,
    rate: float = 0.0,
    document_tokens: int = 8000,
    output_tokens: int = 300,
    max_tokens: int = 1024,
    questions: float = 1.3,
    max_context: int = 65_536,
    seed: int = 0,
) -> Trace:
    """Long documents to summarise; of some, further things are asked.

    `rate` counts documents per second; 0: they are all there from the start.
    """
    rng = np.random.default_rng(seed)
    instruction = text(int(rng.integers(2**32)), 0, 40)
    now = 0.0
    for _ in range(max(1, round(requests / questions))):
        now += rng.exponential(1 / rate) if rate else 0.0
        length = _length(rng, document_tokens, 0.6, most=max_context // 2)
        session = _Session(
            seed=int(rng.integers(2**63)),
            num_turns=int(rng.geometric(1 / questions)),
            think_seconds=1.0,
            said_tokens=(30, 0.3),
            output_tokens=(output_tokens, 0.4),
            max_tokens=max_tokens,
            max_context=max_context,
            predictor_key="documents",
        )
        document = text(int(rng.integers(2**32)), 0, length)
        yield session.begin(now, np.concatenate([instruction, document]))


def agents(
    *,
    tasks: int = 64,
    rollouts: int = 8,
    rate: float = 2.0,
    turns: float = 15.0,
    tools_tokens: int = 2500,
    task_tokens: int = 600,
    result_tokens: int = 350,
    output_tokens: int = 120,
    max_tokens: int = 2048,
    tool_seconds: float = 2.0,
    max_context: int = 32_768,
    seed: int = 0,
) -> Trace:
    """Agents whose prompt grows with every call and its result; several roll out the same task.

    All share the description of the tools. `rate` counts tasks per second.
    """
    rng = np.random.default_rng(seed)
    tools = text(int(rng.integers(2**32)), 0, tools_tokens)
    now = 0.0
    for _ in range(tasks):
        now += rng.exponential(1 / rate)
        task = text(int(rng.integers(2**32)), 0, _length(rng, task_tokens, 0.6, most=8000))
        for _ in range(rollouts):
            session = _Session(
                seed=int(rng.integers(2**63)),
                num_turns=int(rng.geometric(1 / turns)),
                think_seconds=tool_seconds,
                said_tokens=(result_tokens, 0.9),
                output_tokens=(output_tokens, 0.7),
                max_tokens=max_tokens,
                max_context=max_context,
                predictor_key="agents",
            )
            yield session.begin(now, np.concatenate([tools, task]), says_first=False)


class _Session:
    """A client that answers every output with something new, after a while."""

    def __init__(
        self,
        *,
        seed: int,
        num_turns: int,
        think_seconds: float,
        said_tokens: tuple[int, float],
        output_tokens: tuple[int, float],
        max_tokens: int,
        max_context: int,
        predictor_key: str,
        is_streamed: bool = False,
    ) -> None:
        """`said_tokens` and `output_tokens` are the median and sigma of lognormal lengths."""
        self._rng = np.random.default_rng(seed)
        self._key = int(self._rng.integers(2**32))
        self._num_turns_left = num_turns
        self._think_seconds = think_seconds
        self._said_tokens = said_tokens
        self._output_tokens = output_tokens
        self._max_tokens = max_tokens
        self._max_context = max_context
        self._predictor_key = predictor_key
        self._is_streamed = is_streamed

    def begin(self, now: float, context: np.ndarray, *, says_first: bool = True) -> Prompt:
        return self._prompt(now, self._say(context) if says_first else context)

    def _say(self, context: np.ndarray) -> np.ndarray:
        median, sigma = self._said_tokens
        length = _length(self._rng, median, sigma, most=self._max_context // 4)
        said = text(self._key, context.size, context.size + length)
        return np.concatenate([context, said])

    def _prompt(self, now: float, prompt_ids: np.ndarray) -> Prompt:
        median, sigma = self._output_tokens
        length = _length(self._rng, median, sigma, most=2 * self._max_tokens)
        self._num_turns_left -= 1
        return Prompt(
            arrival_seconds=now,
            prompt_ids=prompt_ids,
            output_lens=np.array([length], np.int64),
            output_keys=np.array([self._key], np.uint32),
            max_tokens=self._max_tokens,
            predictor_key=self._predictor_key,
            is_streamed=self._is_streamed,
            follow_up=lambda end: self._next(end, prompt_ids, min(length, self._max_tokens)),
        )

    def _next(self, now: float, prompt_ids: np.ndarray, num_output_tokens: int) -> Prompt | None:
        if not self._num_turns_left:
            return None
        context = self._say(continued(prompt_ids, self._key, num_output_tokens))
        if context.size + self._max_tokens > self._max_context:
            return None
        return self._prompt(now + self._rng.exponential(self._think_seconds), context)


def _length(rng: np.random.Generator, median: float, sigma: float, *, most: int) -> int:
    return int(np.clip(rng.lognormal(np.log(median), sigma), 1, most))


GENERATORS: dict[str, Callable[..., Trace]] = {
    "monkeys": monkeys,
    "chat": chat,
    "documents": documents,
    "agents": agents,
}
