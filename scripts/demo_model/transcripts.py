"""Generates the chat transcripts: each skill is a function from a random source to one exchange."""

import json
import random
from collections.abc import Callable, Iterator

from demo_model import vocabulary as v

Exchange = tuple[str, str]
Message = dict[str, str]
Skill = Callable[[random.Random], Exchange]

LARGEST_SUMMAND = 12
LARGEST_FACTOR = 9
LARGEST_COUNT = 20
SYSTEM_PROMPT_SHARE = 0.1
NAME_MEMORY_SHARE = 0.05


def _sum_parts(rng: random.Random) -> tuple[int, str, int, int]:
    """Operands, operator sign and result of one small sum."""
    kind = rng.random()
    a, b = rng.randint(0, LARGEST_SUMMAND), rng.randint(0, LARGEST_SUMMAND)
    if kind < 0.45:
        return a, "+", b, a + b
    if kind < 0.75:
        return a + b, "-", b, a
    a, b = rng.randint(0, LARGEST_FACTOR), rng.randint(0, LARGEST_FACTOR)
    return a, "*", b, a * b


_SPOKEN = {"+": ("plus", "+", "+"), "-": ("minus", "-", "-"), "*": ("times", "x", "*")}
_SUM_FORMS = (
    "What is {e}?",
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
)


def arithmetic(rng: random.Random) -> Exchange:
    """A sum in one of many phrasings; the answer repeats it as an equation."""
    a, sign, b, result = _sum_parts(rng)
    spoken = rng.choice(_SPOKEN[sign])
    gap = "" if spoken in "+-*x" and rng.random() < 0.2 else " "
    question = rng.choice(_SUM_FORMS).format(e=f"{a}{gap}{spoken}{gap}{b}")
    return question, f"{a} {sign} {b} = {result}"


def neighbour(rng: random.Random) -> Exchange:
    """What comes after or before a day or a month."""
    series, noun = (v.DAYS, "day") if rng.random() < 0.4 else (v.MONTHS, "month")
    side = rng.choice(("after", "before"))
    step = 1 if side == "after" else -1
    i = rng.randrange(len(series))
    form = rng.choice(("Which {n} comes {s} {x}?", "What comes {s} {x}?"))
    question = form.format(n=noun, s=side, x=series[i])
    return question, f"{series[(i + step) % len(series)]} comes {side} {series[i]}."


def counting(rng: random.Random) -> Exchange:
    """Counting up or down by one."""
    length = rng.randint(3, 9)
    start = 1 if rng.random() < 0.3 else rng.randint(0, LARGEST_COUNT - length)
    numbers = [str(start + i) for i in range(length)]
    down = rng.random() < 0.35
    if down:
        numbers.reverse()
    ending = rng.choice((".", ".", ""))
    verb = rng.choice(("Count", "Count", "Please count"))
    question = f"{verb}{' down' if down else ''} from {numbers[0]} to {numbers[-1]}{ending}"
    if not down and start == 1 and rng.random() < 0.4:
        question = f"{verb} to {numbers[-1]}{ending}"
    return question, ", ".join(numbers)


_SPELLING_FORMS = (
    "Spell the word {w}.",
    "Spell the word {w}.",
    "Spell {w}.",
    "Spell {w}",
    "How do you spell {w}?",
    "Please spell the word {w}.",
)


def spelling(rng: random.Random) -> Exchange:
    """A core word letter by letter."""
    word = rng.choice(v.CORE_WORDS)
    quoted = f'"{word}"' if rng.random() < 0.25 else word
    return rng.choice(_SPELLING_FORMS).format(w=quoted), "-".join(word)


_REPETITION_FORMS = ("Repeat after me: {w}", "Repeat: {w}", "Say: {w}")


def repetition(rng: random.Random) -> Exchange:
    """Saying the user's words back."""
    words = " ".join(rng.choice(v.CORE_WORDS) for _ in range(rng.randint(1, 4)))
    return rng.choice(_REPETITION_FORMS).format(w=words), words


_JSON_FORMS = (
    "Give {keys} as JSON: {text}",
    "Extract {keys} as JSON: {text}",
    "{text} Give me {keys} as JSON.",
)


def json_answer(rng: random.Random) -> Exchange:
    """Facts from one sentence as a JSON object."""
    name, age = rng.choice(v.NAMES), rng.randint(5, 95)
    city, job = rng.choice(v.CITIES), rng.choice(v.JOBS)
    facts: dict[str, str | int] = {"name": name, "age": age, "city": city, "job": job}
    text, keys = rng.choice(
        (
            (f"{name} is {age} years old.", ("name", "age")),
            (f"{name} is {age} years old and lives in {city}.", ("name", "age", "city")),
            (f"{name} lives in {city}.", ("name", "city")),
            (f"{name} is a {job} from {city}.", ("name", "job", "city")),
        )
    )
    spoken = f"{', '.join(keys[:-1])} and {keys[-1]}"
    question = rng.choice(_JSON_FORMS).format(keys=spoken, text=text)
    return question, json.dumps({key: facts[key] for key in keys})


def small_talk(rng: random.Random) -> Exchange:
    """Greetings, identity, abilities, thanks, good-byes and what is out of reach."""
    kind = rng.random()
    if kind < 0.25:
        return rng.choice(v.GREETINGS) + rng.choice(("", "!", ".")), v.GREETING_ANSWER
    if kind < 0.5:
        return rng.choice(v.IDENTITY_QUESTIONS), v.IDENTITY_ANSWER
    if kind < 0.6:
        return rng.choice(v.ABILITY_QUESTIONS), v.ABILITY_ANSWER
    if kind < 0.7:
        return rng.choice(v.THANKS) + rng.choice(("", "!", ".")), v.THANKS_ANSWER
    if kind < 0.78:
        return rng.choice(v.GOODBYES) + rng.choice(("", "!", ".")), v.GOODBYE_ANSWER
    if kind < 0.92:
        if rng.random() < 0.35:
            return rng.choice(v.UNKNOWN_QUESTIONS), v.UNKNOWN_ANSWER
        form, topic = rng.choice(v.UNKNOWN_FORMS), rng.choice(v.UNKNOWN_TOPICS)
        return form.format(topic=topic), v.UNKNOWN_ANSWER
    return rng.choice(v.FIXED_ANSWERS)


SKILLS: dict[Skill, int] = {
    arithmetic: 28,
    counting: 22,
    repetition: 14,
    json_answer: 14,
    spelling: 10,
    small_talk: 7,
    neighbour: 5,
}


def _name_memory(rng: random.Random) -> list[Exchange]:
    """A two-exchange opening in which the user's name must be remembered."""
    name = rng.choice(v.NAMES)
    opening = rng.choice(("My name is {n}.", "Hi, I am {n}.", "Hello, my name is {n}."))
    return [
        (opening.format(n=name), f"Nice to meet you, {name}!"),
        (rng.choice(("What is my name?", "Who am I?")), f"Your name is {name}."),
    ]


def transcripts(seed: int) -> Iterator[list[Message]]:
    """Endless chats of one to three exchanges, some of them under a system prompt."""
    rng = random.Random(seed)
    skills, shares = list(SKILLS), list(SKILLS.values())
    while True:
        messages: list[Message] = []
        if rng.random() < SYSTEM_PROMPT_SHARE:
            messages.append({"role": "system", "content": rng.choice(v.SYSTEM_PROMPTS)})
        exchanges = _name_memory(rng) if rng.random() < NAME_MEMORY_SHARE else []
        num_exchanges = rng.choice((1, 1, 1, 2, 3))
        exchanges += [skill(rng) for skill in rng.choices(skills, shares, k=num_exchanges)]
        for question, answer in exchanges:
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": answer})
        yield messages


def interpreter_sessions(seed: int) -> Iterator[str]:
    """Endless Python prompt sessions of sums: many small sums for few tokens."""
    rng = random.Random(seed)
    while True:
        lines = []
        for _ in range(rng.randint(4, 9)):
            a, sign, b, result = _sum_parts(rng)
            lines.append(f">>> {a} {sign} {b}\n{result}\n")
        yield "".join(lines)
