"""Builds the C++ kernels once per machine, loads them, and says which operators to call.

A build lives in the user's cache under a hash of everything that went into it. A lock makes
concurrent processes wait for one build; only a whole library ever gets its final name.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tokasaurus.errors import ConfigError
from tokasaurus.model.kernels import fakes

logger = logging.getLogger(__name__)

FLAVOUR_FLAGS = {
    "avx512": ("-march=native",),
    "avx_vnni": ("-march=x86-64-v3", "-mavxvnni", "-mtune=native"),
    "avx2": ("-march=x86-64-v3", "-mtune=native"),
    "generic": () if platform.machine() in ("x86_64", "AMD64") else ("-march=native",),
}
FLAVOUR_VARIABLE = "TOKASAURUS_CPU_FLAVOUR"
COMMON_FLAGS = (
    "-O3",
    "-fopenmp",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-fno-gnu-unique",
    "-Wno-psabi",
)
SOURCES_DIR = Path(__file__).parent / "csrc"


@dataclass(slots=True, frozen=True, kw_only=True)
class Kernels:
    """The loaded operators of one build."""

    flavour: str
    ops: Any
    """The torch.ops namespace."""
    library: ctypes.CDLL
    """For functions that torch would take too long to call."""

    @property
    def classes(self) -> Any:
        """The torch.classes namespace. It is no field: its repr raises, and printers of test
        arguments print all fields."""
        return getattr(torch.classes, _namespace(self.flavour))


def native_flavour() -> str:
    """The best flavour that this machine runs."""
    return runnable_flavours()[0]


def runnable_flavours() -> tuple[str, ...]:
    """All flavours that this machine runs, best first."""
    capability = torch.backends.cpu.get_cpu_capability()
    has_avx2 = capability in ("AVX512", "AVX2")
    runs = {
        "avx512": capability == "AVX512",
        "avx_vnni": has_avx2 and "avx_vnni" in _cpu_features().split(),
        "avx2": has_avx2,
        "generic": True,
    }
    return tuple(flavour for flavour in FLAVOUR_FLAGS if runs[flavour])


def load_kernels(
    flavour: str | None = None, report: Callable[[str], None] = logger.info
) -> Kernels:
    """The kernels, compiled now if they have not been on this machine.

    `flavour` defaults to the environment's TOKASAURUS_CPU_FLAVOUR, then to the machine's best.
    `report` gets a line when a build starts. Raises ConfigError, with the reason, where they can't
    be built; trying again gives the same answer at once.
    """
    chosen = flavour or os.environ.get(FLAVOUR_VARIABLE) or native_flavour()
    if chosen not in runnable_flavours():
        raise ConfigError(
            f"CPU kernel flavour {chosen!r} can't run here: choose one of "
            f"{', '.join(runnable_flavours())} in {FLAVOUR_VARIABLE} or leave it unset."
        )
    return load_flavour(chosen, FLAVOUR_FLAGS[chosen], report)


def load_flavour(
    flavour: str, flags: tuple[str, ...], report: Callable[[str], None] = logger.info
) -> Kernels:
    """Kernels compiled with `flags` besides the common ones; `flavour` names these flags.

    Raises ConfigError as `load_kernels` does.
    """
    if flavour not in _loaded:
        _loaded[flavour] = _load(flavour, flags, report)
    outcome = _loaded[flavour]
    if isinstance(outcome, str):
        raise ConfigError(outcome)
    return outcome


def kernels_available() -> bool:
    """Whether `load_kernels` would succeed; builds them if need be."""
    try:
        load_kernels()
    except ConfigError:
        return False
    return True


_loaded: dict[str, Kernels | str] = {}
"""Per flavour, the kernels or why there are none."""


def _namespace(flavour: str) -> str:
    return f"tokasaurus_{flavour}"


def _load(flavour: str, flags: tuple[str, ...], report: Callable[[str], None]) -> Kernels | str:
    namespace = _namespace(flavour)
    try:
        path = str(_built_library(flags, namespace, report))
        torch.ops.load_library(path)
        library = ctypes.CDLL(path)
    except (OSError, RuntimeError, ImportError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return (
            "the CPU kernels could not be built; install g++ 11 or newer, or expect plain torch's "
            f"speed ({reason[-1]})"
        )
    fakes.register(namespace)
    return Kernels(
        flavour=flavour,
        ops=getattr(torch.ops, namespace),
        library=library,
    )


def _built_library(flags: tuple[str, ...], namespace: str, report: Callable[[str], None]) -> Path:
    key = _build_key(flags)
    cache = _cache_dir()
    library = cache / f"{namespace}-{key}.so"
    if library.exists():
        return library
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{namespace}-{key}.lock"):
        if not library.exists():
            report("Compiling the CPU kernels for this machine (once, about half a minute)")
            _build(flags, namespace, library)
    return library


def _build(flags: tuple[str, ...], namespace: str, library: Path) -> None:
    # Imported here because it costs half a second that warm starts need not pay.
    from torch.utils import cpp_extension

    with tempfile.TemporaryDirectory(prefix="build-", dir=library.parent) as directory:
        cpp_extension.load(
            name=namespace,
            sources=[str(path) for path in sorted(SOURCES_DIR.glob("*.cpp"))],
            extra_cflags=[*COMMON_FLAGS, *flags, f"-DTOKA_NAMESPACE={namespace}"],
            extra_ldflags=["-fopenmp"],
            build_directory=directory,
            is_python_module=False,
        )
        # The process has loaded the file by now; a moved file counts as loaded, a copy would not.
        (Path(directory) / f"{namespace}.so").replace(library)


def _build_key(flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for path in sorted(SOURCES_DIR.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for part in (*COMMON_FLAGS, *flags, torch.__version__, _cpu_features()):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:16]


def _cpu_features() -> str:
    """What `-march=native` depends on."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        wanted = ("flags", "features", "model name", "cpu family", "model\t")
        return "\n".join(sorted({line for line in lines if line.lower().startswith(wanted)}))
    return platform.processor()


def _cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tokasaurus" / "kernels"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
