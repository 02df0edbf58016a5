"""`add_special_tokens` decides, wherever it may be given, whether BOS stands before a prompt."""

from typing import Any

import pytest
import tokenizers
from tokenizers.processors import TemplateProcessing

from tests.unit.server.tiny_server import TOKENIZER, TinyServer, run
from tokasaurus.tokenization.encoding_pool import EncodingPool
from tokasaurus.tokenization.tokenizer import Tokenizer

BOS = 0


def tokenizer_with_bos() -> Tokenizer:
    backend = tokenizers.Tokenizer.from_str(TOKENIZER._backend.to_str())
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return Tokenizer(backend, {"eos_token": "</s>", "bos_token": "<s>"})


@pytest.mark.parametrize(
    ("path", "body", "default"),
    [
        ("/v1/completions", {"prompt": "The", "max_tokens": 1}, True),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "The"}]}, False),
        ("/v1/score", {"text_1": "The", "text_2": "fox"}, True),
        ("/v1/embeddings", {"input": "The"}, True),
        ("/tokenize", {"prompt": "The"}, True),
        ("/tokenize", {"messages": [{"role": "user", "content": "The"}]}, False),
    ],
)
def test_bos(path: str, body: dict[str, Any], default: bool) -> None:
    async def check(server: TinyServer) -> None:
        server.state.encoding_pool.close()
        server.state.encoding_pool = EncodingPool(tokenizer_with_bos())
        for value in (None, True, False):
            fields = body if value is None else body | {"add_special_tokens": value}
            response = await server.post(path, fields)
            assert response.status_code == 200, response.text
            if path == "/tokenize":
                ids = response.json()["tokens"]
            else:
                ids = server.manager.requests[-1].prompt_ids.tolist()
            assert (ids[0] == BOS) == (default if value is None else value)

    run(check)
