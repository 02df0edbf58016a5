"""What a worker does not need it does not load: imports are most of an engine's start."""

import subprocess
import sys

from tokasaurus.model.kernels.loader import kernels_available

NOT_NEEDED = (
    "transformers",
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed._symmetric_memory",
    "torch.utils.cpp_extension",
    "triton",
    "sympy",
    "llguidance",
    "jinja2",
    "safetensors",
    "huggingface_hub",
    "fastapi",
)

START = f"""
import sys
import torch
from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.worker.process import build_runner

options = ["device=cpu", "kv_cache_num_tokens=1024", "max_seqs_per_forward=8"]
runner = build_runner(EngineConfig.from_args(options), torch.device("cpu"))
runner.load(lambda fraction, text: None)
runner.warm_up(lambda fraction, text: None)
print([name for name in {NOT_NEEDED!r} if name in sys.modules])
"""


def test_a_worker_over_the_demo_model_loads_no_heavy_modules() -> None:
    """Loaded and warmed up, with kernels that have been built already."""
    kernels_available()
    result = subprocess.run(
        [sys.executable, "-c", START], capture_output=True, text=True, timeout=300, check=True
    )
    assert result.stdout.strip() == "[]"
