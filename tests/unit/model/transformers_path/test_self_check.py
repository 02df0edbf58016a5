"""The comparison with transformers' own execution before a model is served."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.checkpoints import make_checkpoint
from tokasaurus.model.config import UnsupportedFeatureError
from tokasaurus.model.transformers_path.model import TransformersModel


def opt(folder: Path) -> Any:
    checkpoint = make_checkpoint("opt", folder)
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def test_a_model_that_runs_alike_passes(tmp_path: Path) -> None:
    model = TransformersModel(opt(tmp_path), 512)
    assert model.path == "transformers OPTForCausalLM"


def test_a_model_that_counts_positions_by_itself_is_refused(tmp_path: Path) -> None:
    model = opt(tmp_path)
    embed = model.model.decoder.embed_positions
    own_forward = embed.forward

    def forward(mask: torch.Tensor, past: int = 0, position_ids: torch.Tensor | None = None) -> Any:
        return own_forward(mask, past, torch.arange(mask.shape[1])[None])

    embed.forward = forward
    with pytest.raises(UnsupportedFeatureError, match="logits differ"):
        TransformersModel(model, 512)


def test_a_model_that_carries_state_between_tokens_is_refused(tmp_path: Path) -> None:
    model = opt(tmp_path)
    first = model.model.decoder.layers[0].fc1
    own_forward = first.forward

    def forward(x: torch.Tensor) -> Any:
        return own_forward(x + x.cumsum(-2))

    first.forward = forward
    with pytest.raises(UnsupportedFeatureError, match="logits differ"):
        TransformersModel(model, 512)
