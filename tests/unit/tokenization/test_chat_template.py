"""Chat templates render as their checkpoints mean them, and can do no harm."""

import json
from pathlib import Path

import pytest

from tokasaurus.errors import InvalidRequestError, ModelError
from tokasaurus.tokenization.chat_template import ChatTemplate

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HELLO = [{"role": "user", "content": "Hi <b>"}]


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"eos_token": "</s>"}, origin="a test")


def test_chatml() -> None:
    chat = template(CHATML)
    assert chat.render(HELLO) == "<|im_start|>user\nHi <b></s>\n<|im_start|>assistant\n"
    assert chat.render(HELLO, add_generation_prompt=False) == "<|im_start|>user\nHi <b></s>\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ {'a': '<é>'} | tojson }}", '{"a": "<é>"}'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}", '{\n "a": 2,\n "b": 1\n}'),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("{% generation %}x{{ messages[0].role }}{% endgeneration %}y", "xusery"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("  {% if true %}\na\n  {% endif %}\nb", "a\nb"),
        ("{% set ns = namespace(n=1) %}{% set ns.n = 2 %}{{ ns.n }}", "2"),
        ("{{ depth }}{{ tools is none }}", "7True"),
    ],
)
def test_environment(source: str, expected: str) -> None:
    assert template(source).render(HELLO, variables={"depth": 7}) == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "can't render"),
        ("{{ nothing.at.all }}", "refuses"),
        ("{{ messages.__class__.__mro__ }}", "refuses"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{{ messages[0].update(role='x') }}", "refuses"),
    ],
)
def test_failures_are_the_clients(source: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        template(source).render(HELLO)
    assert caught.value.param == "messages"


def test_reserved_variables() -> None:
    with pytest.raises(InvalidRequestError, match="'messages'"):
        template(CHATML).render(HELLO, variables={"messages": []})


def test_syntax_error_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="a test has an error"):
        template("{% for %}")


def test_where_templates_are_found(tmp_path: Path) -> None:
    def rendered(settings: dict, override: str | None = None) -> str | None:
        found = ChatTemplate.load(tmp_path, settings, {}, override=override)
        return found and found.render([])

    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert rendered({}) is None
    assert rendered({"chat_template": "c"}) == "c"
    assert rendered({"chat_template": named}) == "d"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert rendered({"chat_template": "c"}) == "file"
    (tmp_path / "mine.jinja").write_text("mine")
    assert rendered({"chat_template": "c"}, str(tmp_path / "mine.jinja")) == "mine"
    with pytest.raises(ModelError, match="can't be read"):
        rendered({}, str(tmp_path / "absent.jinja"))


def test_a_template_of_its_own_for_tools(tmp_path: Path) -> None:
    named = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "<tool_call> {{ tools | length }}"},
    ]
    chat = ChatTemplate.load(tmp_path, {"chat_template": named}, {})
    assert chat is not None
    assert chat.render(HELLO) == "plain"
    assert chat.render(HELLO, tools=[{}, {}]) == "<tool_call> 2"
    assert chat.mentions("<tool_call>")


def test_demo_model_template_reads_from_its_files() -> None:
    from tokasaurus.demo_model import DEMO_MODEL_DIR

    settings = json.loads((DEMO_MODEL_DIR / "tokenizer_config.json").read_text())
    chat = ChatTemplate.load(DEMO_MODEL_DIR, settings, {})
    assert chat is not None
    assert chat.render(HELLO).endswith("<|im_start|>assistant\n")
