"""What an engine at rest holds in memory."""

import re

from tests.integration.engine_process import EngineProcess
from tokasaurus.demo_model import DEMO_MODEL_DIR

MIB = 1 << 20
KV_TOKENS = 32768


def test_processes_at_rest() -> None:
    options = (f"kv_cache_num_tokens={KV_TOKENS}", "cpu_threads=1", "dtype=float32")
    with EngineProcess(options) as process:
        process.wait_until_ready()
        resident = {name: p.memory_info().rss for name, p in process.children().items()}
        kv_line = next(line for line in process.lines if "KV cache" in line)
        kv_gib = float(re.search(r"([\d.]+) GiB", kv_line)[1])  # type: ignore[index]
        assert process.stop() == 0
    assert resident["server0"] <= 150 * MIB
    assert resident["manager0"] <= 150 * MIB
    weights = 2 * (DEMO_MODEL_DIR / "model.safetensors").stat().st_size  # bfloat16 as float32
    assert resident["worker0.0"] <= weights + (kv_gib * 1024 + 500) * MIB
