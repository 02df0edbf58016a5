"""Generates the chat transcripts: each skill is a function from a random source to one exchange."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from demo_model import vocabulary as v

Exchange = tuple[str, str]
Message = dict[str, str]


def _small_or_any(rng: random.Random, largest: int) -> int:
    return rng.randint(0, 20 if rng.random() < 0.4 else largest)


def _sum_parts(rng: random.Random) -> tuple[int, str, int, int]:
    """Operands, operator sign and result of one small sum."""
    kind = rng.random()
    if kind < 0.45:
        a, b = _small_or_any(rng, 99), _small_or_any(rng, 99)
        return a, "+", b, a + b
    if kind < 0.8:
        a, b = _small_or_any(rng, 99), _small_or_any(rng, 99)
        if a < b and rng.random() < 0.8:
            a, b = b, a
        return a, "-", b, a - b
    a, b = rng.randint(0, 12), rng.randint(0, 12)
    return a, "*", b, a * b


_SPOKEN = {"+": ("plus", "+"), "-": ("minus", "-"), "*": ("times", "x", "*", "multiplied by")}
_SUM_FORMS = (
    "What is {e}?",
    "What is {e}?",
    "What's {e}?",
    "what is {e}",
    "Calculate {e}.",
    "Compute {e}.",
    "How much is {e}?",
    "{e}",
    "{e} = ?",
    "{e}=",
    "{e}?",
    "Please compute {e}.",
    "What is {e}? Answer with a number.",
)


def arithmetic(rng: random.Random) -> Exchange:
    """A sum in one of many phrasings; the answer repeats it as an equation."""
    a, sign, b, result = _sum_parts(rng)
    spoken = rng.choice(_SPOKEN[sign])
    gap = "" if spoken in "+-*x" and rng.random() < 0.25 else " "
    question = rng.choice(_SUM_FORMS).format(e=f"{a}{gap}{spoken}{gap}{b}")
    return question, f"{a} {sign} {b} = {result}"


def compare(rng: random.Random) -> Exchange:
    """Which of two numbers is larger or smaller."""
    a, b = rng.sample(range(100), 2)
    word = rng.choice(("larger", "bigger", "smaller"))
    low, high = sorted((a, b))
    first, second = (low, high) if word == "smaller" else (high, low)
    form = rng.choice(
        (
            "Which is {w}, {a} or {b}?",
            "Which number is {w}: {a} or {b}?",
            "What is {w}, {a} or {b}?",
        )
    )
    return form.format(w=word, a=a, b=b), f"{first} is {word} than {second}."


def parity(rng: random.Random) -> Exchange:
    """Whether a number is even or odd."""
    n, asked = rng.randint(0, 99), rng.choice(("even", "odd"))
    truth = "odd" if n % 2 else "even"
    question = rng.choice((f"Is {n} {asked}?", f"Is {n} an {asked} number?"))
    return question, f"{'Yes' if truth == asked else 'No'}, {n} is {truth}."


def neighbour(rng: random.Random) -> Exchange:
    """What comes after or before a number, a day or a month."""
    side = rng.choice(("after", "before"))
    step = 1 if side == "after" else -1
    kind = rng.random()
    if kind < 0.5:
        n = rng.randint(1, 99)
        question = rng.choice((f"What comes {side} {n}?", f"Which number comes {side} {n}?"))
        return question, f"{n + step} comes {side} {n}."
    series, noun = (v.DAYS, "day") if kind < 0.75 else (v.MONTHS, "month")
    i = rng.randrange(len(series))
    question = rng.choice(
        (f"Which {noun} comes {side} {series[i]}?", f"What comes {side} {series[i]}?")
    )
    return question, f"{series[(i + step) % len(series)]} comes {side} {series[i]}."


def counting(rng: random.Random) -> Exchange:
    """Counting up or down, by one or by a small step."""
    length = rng.randint(2, 12)
    step = rng.choice((1, 1, 1, 1, 2, 5, 10))
    start = rng.choice((0, 1, 1, 1, rng.randint(0, 90)))
    numbers = [start + step * i for i in range(length)]
    down = rng.random() < 0.35
    if down:
        numbers.reverse()
    by = "" if step == 1 else rng.choice((f" by {step}", f" in steps of {step}"))
    direction = rng.choice((" down", " backwards")) if down else rng.choice(("", "", " up"))
    ending = rng.choice((".", ".", "", ", please."))
    verb = rng.choice(("Count", "Count", "Please count", "Can you count"))
    question = f"{verb}{direction} from {numbers[0]} to {numbers[-1]}{by}{ending}"
    if not down and start == 1 and step == 1 and rng.random() < 0.4:
        question = f"{verb} to {numbers[-1]}{ending}"
    return question, ", ".join(map(str, numbers))


def _quoted(rng: random.Random, word: str) -> str:
    return rng.choice((word, word, f'"{word}"', f"'{word}'"))


class WordSkills:
    """The skills about the letters of a word, over the core words and a wider list."""

    def __init__(self, wider_words: list[str], core_share: float) -> None:
        self.wider_words = wider_words
        self.core_share = core_share

    def _word(self, rng: random.Random) -> str:
        return rng.choice(v.CORE_WORDS if rng.random() < self.core_share else self.wider_words)

    def spelling(self, rng: random.Random) -> Exchange:
        """A word letter by letter."""
        word = self._word(rng)
        form = rng.choice(
            (
                "Spell the word {w}.",
                "Spell {w}.",
                "Spell {w}",
                "How do you spell {w}?",
                "How is {w} spelled?",
                "Please spell the word {w}.",
                "Can you spell {w}?",
            )
        )
        return form.format(w=_quoted(rng, word)), "-".join(word)

    def letter_count(self, rng: random.Random) -> Exchange:
        """How many letters a word has, spelled first so that the count can be read off."""
        word = self._word(rng)
        form = rng.choice(("How many letters are in {w}?", "How many letters does {w} have?"))
        return form.format(w=_quoted(rng, word)), f"{'-'.join(word)}: {len(word)} letters"

    def backwards(self, rng: random.Random) -> Exchange:
        """A short word reversed, spelled forwards first."""
        word = self._word(rng)
        while len(word) > 6:
            word = self._word(rng)
        form = rng.choice(("Reverse the word {w}.", "Spell {w} backwards.", "Reverse {w}."))
        return form.format(
            w=_quoted(rng, word)
        ), f"{'-'.join(word)} reversed: {'-'.join(word[::-1])}"

    def repetition(self, rng: random.Random) -> Exchange:
        """Saying the user's words back."""
        words = " ".join(self._word(rng) for _ in range(rng.randint(1, 5)))
        return rng.choice(("Repeat after me: {w}", "Repeat: {w}", "Say: {w}")).format(
            w=words
        ), words


_JSON_FORMS = (
    "Give {keys} as JSON: {text}",
    "Extract {keys} as JSON: {text}",
    "Write {keys} as JSON. {text}",
    "{text} Answer with JSON: {keys}.",
    "{text} Give me {keys} as JSON.",
)


def json_answer(rng: random.Random) -> Exchange:
    """Facts from one sentence as a JSON object with the asked keys in the asked order."""
    name, age = rng.choice(v.NAMES), rng.randint(5, 95)
    city, job = rng.choice(v.CITIES), rng.choice(v.JOBS)
    facts: dict[str, str | int] = {"name": name, "age": age, "city": city, "job": job}
    text, known = rng.choice(
        (
            (f"{name} is {age} years old.", ("name", "age")),
            (f"{name} is {age} years old and lives in {city}.", ("name", "age", "city")),
            (f"{name}, {age}, lives in {city}.", ("name", "age", "city")),
            (f"{name} lives in {city}.", ("name", "city")),
            (f"{name} is a {job} from {city}.", ("name", "job", "city")),
            (f"{name} is a {age} year old {job}.", ("name", "age", "job")),
        )
    )
    keys = list(known) if rng.random() < 0.7 else [known[0], rng.choice(known[1:])]
    spoken = f"{', '.join(keys[:-1])} and {keys[-1]}"
    if rng.random() < 0.3:
        spoken = f"the {spoken}"
    question = rng.choice(_JSON_FORMS).format(keys=spoken, text=text)
    return question, json.dumps({key: facts[key] for key in keys})


def small_talk(rng: random.Random) -> Exchange:
    """Greetings, identity, abilities, thanks, good-byes and what is out of reach."""
    kind = rng.random()
    if kind < 0.2:
        return rng.choice(v.GREETINGS) + rng.choice(("", "!", ".")), v.GREETING_ANSWER
    if kind < 0.45:
        return rng.choice(v.IDENTITY_QUESTIONS), v.IDENTITY_ANSWER
    if kind < 0.55:
        return rng.choice(v.ABILITY_QUESTIONS), v.ABILITY_ANSWER
    if kind < 0.65:
        return rng.choice(v.THANKS) + rng.choice(("", "!", ".")), v.THANKS_ANSWER
    if kind < 0.72:
        return rng.choice(v.GOODBYES) + rng.choice(("", "!", ".")), v.GOODBYE_ANSWER
    if kind < 0.92:
        if rng.random() < 0.35:
            return rng.choice(v.UNKNOWN_QUESTIONS), v.UNKNOWN_ANSWER
        form, topic = rng.choice(v.UNKNOWN_FORMS), rng.choice(v.UNKNOWN_TOPICS)
        return form.format(topic=topic), v.UNKNOWN_ANSWER
    return rng.choice(v.FIXED_ANSWERS)


def function_request(rng: random.Random) -> Exchange:
    """A request for one of a dozen tiny Python functions."""
    task, code = rng.choice(v.FUNCTIONS)
    form = rng.choice(
        (
            "Write a Python function that {t}.",
            "Write a function that {t}.",
            "Python function that {t}",
        )
    )
    return form.format(t=task), code


def _name_memory(rng: random.Random) -> list[Message]:
    """A two-exchange opening in which the user's name must be remembered."""
    name = rng.choice(v.NAMES)
    opening = rng.choice(
        ("My name is {n}.", "Hi, I am {n}.", "Hello, my name is {n}.", "I am {n}.")
    )
    return _as_messages(
        [
            (opening.format(n=name), f"Nice to meet you, {name}!"),
            (rng.choice(("What is my name?", "Who am I?")), f"Your name is {name}."),
        ]
    )


def _as_messages(exchanges: list[Exchange]) -> list[Message]:
    messages: list[Message] = []
    for question, answer in exchanges:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return messages


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMix:
    """How often each skill is practised, and the share of core words among all words."""

    core_share: float
    arithmetic: int
    counting: int
    spelling: int
    json_answer: int
    small_talk: int
    letter_count: int
    backwards: int
    repetition: int
    compare: int
    parity: int
    neighbour: int
    function_request: int

    def skills(self, wider_words: list[str]) -> dict[Callable[[random.Random], Exchange], int]:
        """Each skill with its share."""
        words = WordSkills(wider_words, self.core_share)
        return {
            arithmetic: self.arithmetic,
            counting: self.counting,
            words.spelling: self.spelling,
            json_answer: self.json_answer,
            small_talk: self.small_talk,
            words.letter_count: self.letter_count,
            words.backwards: self.backwards,
            words.repetition: self.repetition,
            compare: self.compare,
            parity: self.parity,
            neighbour: self.neighbour,
            function_request: self.function_request,
        }


BROAD_MIX = ChatMix(
    core_share=0.6,
    arithmetic=34,
    counting=9,
    spelling=11,
    json_answer=12,
    small_talk=10,
    letter_count=3,
    backwards=4,
    repetition=4,
    compare=4,
    parity=3,
    neighbour=4,
    function_request=3,
)

HARD_MIX = ChatMix(
    core_share=0.9,
    arithmetic=28,
    counting=14,
    spelling=14,
    json_answer=6,
    small_talk=5,
    letter_count=5,
    backwards=5,
    repetition=3,
    compare=7,
    parity=5,
    neighbour=6,
    function_request=2,
)


def transcripts(seed: int, wider_words: list[str], mix: ChatMix) -> Iterator[list[Message]]:
    """Endless chats of one to four exchanges, a third of them under a system prompt."""
    rng = random.Random(seed)
    weights = mix.skills(wider_words)
    skills, shares = list(weights), list(weights.values())
    while True:
        messages: list[Message] = []
        if rng.random() < 0.33:
            messages.append({"role": "system", "content": rng.choice(v.SYSTEM_PROMPTS)})
        if rng.random() < 0.04:
            messages += _name_memory(rng)
        num_exchanges = rng.choice((1, 1, 2, 2, 3, 4))
        chosen = rng.choices(skills, shares, k=num_exchanges)
        yield messages + _as_messages([skill(rng) for skill in chosen])


def interpreter_sessions(seed: int) -> Iterator[str]:
    """Endless Python prompt sessions of sums: many small sums for few tokens."""
    rng = random.Random(seed)
    while True:
        lines = []
        for _ in range(rng.randint(4, 16)):
            a, sign, b, result = _sum_parts(rng)
            lines.append(f">>> {a} {sign} {b}\n{result}\n")
        yield "".join(lines)
