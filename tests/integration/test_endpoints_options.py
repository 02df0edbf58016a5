"""Options that say how a model marks tools and reasoning reach the server process."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.integration.conftest import SMALL
from tests.integration.engine_process import EngineProcess

TEMPLATE = (
    "{% if tools %}{% for t in tools %}{{ t | tojson }}\n{% endfor %}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n{% if thinks %}<think>\n{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    template: Path = tmp_path_factory.mktemp("template") / "own.jinja"
    template.write_text(TEMPLATE)
    options = (f"chat_template={template}", "tool_parser=hermes", "reasoning_parser=think")
    with EngineProcess((*SMALL, *options)) as process:
        process.wait_until_ready()
        with openai.OpenAI(base_url=f"{process.url}/v1", api_key="none", max_retries=0) as client:
            yield client


def ask(client: openai.OpenAI, **options: object) -> openai.types.chat.ChatCompletion:
    return client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "What is 2 + 3?"}],
        temperature=0,
        max_tokens=12,
        **options,  # type: ignore[call-overload]
    )


def test_tools_reach_the_prompt(client: openai.OpenAI) -> None:
    def num_prompt_tokens(**options: object) -> int:
        return ask(client, **options).usage.prompt_tokens

    assert num_prompt_tokens(tools=[TOOL]) > num_prompt_tokens()
    assert num_prompt_tokens(tools=[TOOL], tool_choice="none") == num_prompt_tokens()
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        with pytest.raises(openai.BadRequestError, match="grammar") as caught:
            ask(client, tools=[TOOL], tool_choice=choice)
        assert caught.value.param == "tool_choice"


def test_reasoning_that_the_prompt_opened(client: openai.OpenAI) -> None:
    extra = {"chat_template_kwargs": {"thinks": True}}
    message = ask(client, extra_body=extra).choices[0].message
    assert message.content == ""
    assert message.reasoning_content
    answer = ask(client).choices[0].message
    assert answer.content
    assert not hasattr(answer, "reasoning_content")
