"""What an engine at rest holds in memory."""

import re

from tests.integration.conftest import Engine
from tokasaurus.demo_model import DEMO_MODEL_DIR

MIB = 1 << 20


def test_processes_at_rest(engine: Engine) -> None:
    kv_line = next(line for line in engine.process.lines if "KV cache" in line)
    kv_gib = float(re.search(r"([\d.]+) GiB", kv_line)[1])  # type: ignore[index]
    assert engine.resident["server0"] <= 150 * MIB
    assert engine.resident["manager0"] <= 150 * MIB
    weights = 2 * (DEMO_MODEL_DIR / "model.safetensors").stat().st_size  # bfloat16 as float32
    assert engine.resident["worker0.0"] <= weights + (kv_gib * 1024 + 500) * MIB
