"""Grammars with preemption, shared prefixes and steps ahead: outputs match, and are those of an
undisturbed run."""

import re
from collections.abc import Callable
from pathlib import Path

from tests.checkpoints import EOS_ID, VOCAB_SIZE
from tests.numerics.whole_engine import WholeEngine
from tests.reference import mixed_prompts
from tokasaurus.ipc.messages.to_manager import TokenSampling
from tokasaurus.tokenization.tokenizer import Tokenizer

Checkpoint = Callable[..., Path]
PATTERN = r"[a-z]{3,9}(, [a-z]{3,9}){1,4}\."
MAX_TOKENS = 60


def test_preemption_and_company_change_nothing(checkpoint: Checkpoint) -> None:
    folder = checkpoint("llama")
    prompts = mixed_prompts(32, VOCAB_SIZE)
    samplings = [
        TokenSampling(
            seed=i,
            temperature=(0.0, 1.0)[i % 2],
            frequency_penalty=(0.0, 0.5)[i % 3 == 0],
            grammar=f"start: /{PATTERN}/" if i % 4 else "",
            end_token_ids=(EOS_ID,) if i % 4 else (),
        )
        for i in range(32)
    ]
    calm = WholeEngine(folder, preempt_every_steps=0)
    together, _, _ = calm.generate(prompts, samplings, MAX_TOKENS)
    preempted, _, ends = WholeEngine(folder, preempt_every_steps=3).generate(
        prompts, samplings, MAX_TOKENS
    )
    assert preempted == together
    assert sum(end.num_preemptions for end in ends) > 10
    assert sum(end.num_cached_tokens for end in ends) > 100
    alone = [calm.generate([prompts[i]], [samplings[i]], MAX_TOKENS)[0][0] for i in range(1, 32, 5)]
    assert alone == together[1::5]
    tokenizer = Tokenizer.load(folder)
    num_complete = 0
    for output, sampling in zip(together, samplings, strict=True):
        if sampling.grammar and EOS_ID in output:
            text = tokenizer.decode(output[: output.index(EOS_ID)])
            assert re.fullmatch(PATTERN, text), text
            num_complete += 1
    assert num_complete > 8
