"""Our reader of safetensors files against the reference writer, and against broken files."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tokasaurus.errors import ModelError
from tokasaurus.model.weights.safetensors_file import SafetensorsFile


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
)
def test_reads_what_the_reference_wrote(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {"a": torch.randn(5, 3).to(dtype), "b": torch.randn(7).to(dtype)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert sorted(file.names()) == ["a", "b"]
    for name, expected in tensors.items():
        target = torch.empty(expected.shape)
        file.tensor(name).copy_to(target)
        assert torch.equal(target, expected.float())
        assert file.dtype(name) == dtype


def test_copies_rows_only(tmp_path: Path) -> None:
    data = torch.randn(10, 4)
    save_file({"a": data}, tmp_path / "x.safetensors")
    target = torch.empty(3, 4)
    SafetensorsFile(tmp_path / "x.safetensors").tensor("a").copy_to(target, slice(5, 8))
    assert torch.equal(target, data[5:8])


def test_copies_larger_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokasaurus.model.weights.tensors._CHUNK_BYTES", 4096)
    data = torch.randn(300, 77)
    save_file({"a": data}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    for _ in range(2):
        target = torch.empty(300, 77, dtype=torch.bfloat16)
        file.tensor("a").copy_to(target)
        assert torch.equal(target, data.bfloat16())


def test_empty_and_scalar_tensors(tmp_path: Path) -> None:
    save_file({"a": torch.tensor(2.5), "b": torch.empty(0, 4)}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    scalar = torch.empty(())
    file.tensor("a").copy_to(scalar)
    file.tensor("b").copy_to(torch.empty(0, 4))
    assert scalar == 2.5


def test_a_wrong_shape_names_the_tensor(tmp_path: Path) -> None:
    save_file({"model.norm.weight": torch.ones(4)}, tmp_path / "x.safetensors")
    tensor = SafetensorsFile(tmp_path / "x.safetensors").tensor("model.norm.weight")
    with pytest.raises(ModelError, match=r"model\.norm\.weight.*\(4,\).*\(8,\)"):
        tensor.copy_to(torch.empty(8))


def test_quantised_tensors_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4, dtype=torch.uint8)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="quantised"):
        SafetensorsFile(tmp_path / "x.safetensors").tensor("a").copy_to(torch.empty(4))


def _entry(dtype: str, shape: str, end: int) -> bytes:
    header = f'{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end}]}}}}'.encode()
    return len(header).to_bytes(8, "little") + header + bytes(16)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        (1 << 60).to_bytes(8, "little") + b"{}",
        (10).to_bytes(8, "little") + b"not json!!",
        (2).to_bytes(8, "little") + b"[]",
        _entry("F32", "[4]", 8),
        _entry("F32", "[-4]", 16),
        _entry("F32", "[400]", 1600),
        _entry("F99", "[4]", 16),
        _entry("F32", '"x"', 16),
    ],
)
def test_broken_files_say_so(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"x\.safetensors"):
        SafetensorsFile(path).tensor("a")
