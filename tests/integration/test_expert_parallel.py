"""A mixture of experts over two worker processes that hold half of the experts each."""

from pathlib import Path

import numpy as np

from tests.checkpoints import VOCAB_SIZE, make_checkpoint
from tests.reference import greedy_reference, mixed_prompts
from tokasaurus import LLM, SamplingParams


def test_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    folder = make_checkpoint("qwen2_moe", tmp_path)
    prompts = mixed_prompts(24, VOCAB_SIZE)
    expected_tokens, expected_logprobs = greedy_reference(folder, prompts, 8)
    with LLM(
        str(folder),
        tp_size=2,
        dtype="float32",
        kv_cache_num_tokens=4096,
        cpu_threads=1,
        max_tokens_per_forward=128,
        max_seqs_per_forward=32,
        show_progress=False,
    ) as llm:
        greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0)
        outputs = llm.generate(prompts, greedy, progress=False)
    assert [output.token_ids for output in outputs] == expected_tokens
    for output, logprobs in zip(outputs, expected_logprobs, strict=True):
        entries = output.outputs[0].logprobs
        assert entries is not None
        np.testing.assert_allclose([entry.logprob for entry in entries], logprobs, atol=1e-4)
