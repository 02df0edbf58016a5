"""Choosing, refusing and failing to build kernel flavours."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis.vendor.pretty import pretty

from tokasaurus.errors import ConfigError
from tokasaurus.model.kernels import loader


@pytest.fixture
def nothing_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loader, "_loaded", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_best_flavour_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(loader.FLAVOUR_VARIABLE, raising=False)
    assert loader.load_kernels().flavour == loader.native_flavour()
    assert loader.runnable_flavours()[-1] == "generic"


@pytest.mark.slow  # builds a second flavour, which takes both cores for half a minute
def test_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(loader.FLAVOUR_VARIABLE, "generic")
    assert loader.load_kernels().flavour == "generic"
    assert loader.load_kernels(loader.native_flavour()).flavour == loader.native_flavour()


def test_unknown_flavour_lists_what_runs() -> None:
    with pytest.raises(ConfigError, match=r"choose one of .*generic"):
        loader.load_kernels("quantum")


@pytest.mark.usefixtures("nothing_loaded")
def test_failed_build_is_remembered_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = []

    def fail(*arguments: object) -> None:
        attempts.append(arguments)
        raise OSError("c++: not found")

    monkeypatch.setattr(loader, "_build", fail)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"install g\+\+.*c\+\+: not found"):
            loader.load_kernels("generic")
    assert len(attempts) == 1
    assert not loader.kernels_available() or loader.native_flavour() != "generic"


@pytest.mark.usefixtures("nothing_loaded")
def test_second_process_finds_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process built while this one waited for the lock is not built again."""
    lines: list[str] = []

    def build(flags: tuple[str, ...], namespace: str, library: Path) -> None:
        library.write_bytes(b"")

    monkeypatch.setattr(loader, "_build", build)
    for _ in range(2):
        library = loader._built_library(("-O1",), "tokasaurus_generic", lines.append)
        assert library.exists()
    assert len(lines) == 1


def test_key_depends_on_the_flags() -> None:
    keys = [loader._build_key(flags) for flags in loader.FLAVOUR_FLAGS.values()]
    assert len(set(keys)) == len(set(loader.FLAVOUR_FLAGS.values()))
    assert loader._build_key(("-O1",)) == loader._build_key(("-O1",))


@pytest.mark.parametrize(
    ("capability", "features", "expected"),
    [
        ("AVX512", "flags: avx2 avx512f avx_vnni", ("avx512", "avx_vnni", "avx2", "generic")),
        ("AVX512", "flags: avx2 avx512f", ("avx512", "avx2", "generic")),
        ("AVX2", "flags: avx2 avx_vnni", ("avx_vnni", "avx2", "generic")),
        ("AVX2", "flags: avx2", ("avx2", "generic")),
        ("DEFAULT", "flags: sse2 avx_vnni", ("generic",)),
    ],
)
def test_machines_run_what_they_have(
    monkeypatch: pytest.MonkeyPatch, capability: str, features: str, expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr(loader.torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(loader, "_cpu_features", lambda: features)
    assert loader.runnable_flavours() == expected
    assert loader.native_flavour() == expected[0]


@pytest.mark.parametrize("printed", [repr, pretty])
def test_printing_names_the_flavour(printed: Callable[[object], str]) -> None:
    """A failing property test prints its arguments: what they raise would hide the failure."""
    kernels = loader.load_kernels()
    assert kernels.flavour in printed(kernels)
