"""The start-up line names model, device and address, and the next command fits them."""

from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.launch.announcement import announcement


def test_default_port_needs_no_url() -> None:
    lines = announcement(
        EngineConfig(), {"manager0": "native on cpu", "server0": "http://127.0.0.1:10210"}, 1.23
    )
    assert "Serving demo at http://127.0.0.1:10210/v1" in lines[0]
    assert "native on cpu" in lines[0]
    assert "1.2 s" in lines[0]
    assert "toka-ping" in lines[1]
    assert "url=" not in lines[1]
    assert '"model": "demo"' in lines[2]


def test_other_port_and_replicas() -> None:
    texts = {"manager0": "native", "manager1": "native", "server0": "http://127.0.0.1:5"}
    lines = announcement(EngineConfig(served_model_name="x", dp_size=2), texts, 1)
    assert "x 2 replicas" in lines[0]
    assert "url=http://127.0.0.1:5" in lines[1]
    assert '"model": "x"' in lines[2]
