"""Who may import whom: read from the source, and checked in fresh interpreters."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tokasaurus"

ALLOWED = {
    "errors": set(),
    "demo_model": set(),
    "config": {"errors", "demo_model"},
    "observability": {"errors", "config"},
    "ipc": {"errors", "config"},
    "tokenization": {"errors", "config", "observability"},
    "manager": {"errors", "config", "ipc", "observability"},
    "model": {"errors", "config", "ipc", "observability"},
    "worker": {"errors", "config", "ipc", "observability", "model", "tokenization"},
    "server": {"errors", "config", "ipc", "observability", "tokenization"},
    "launch": {"errors", "config", "ipc", "observability", "manager", "worker", "server"},
    "api": {"errors", "config", "ipc", "observability", "launch", "server", "tokenization"},
    "cli": {"errors", "config", "ipc", "observability", "launch", "server", "api"},
}
"""Package -> packages it may import, besides itself."""

PUBLIC_NAMES_MODULE = PACKAGE / "__init__.py"


def package_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "tokasaurus" and len(parts) > 1 else None


def imported_packages(path: Path) -> set[str]:
    """Packages below tokasaurus that the file imports anywhere, also under TYPE_CHECKING."""
    packages = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module]
            if node.module == "tokasaurus":
                modules = [f"tokasaurus.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        packages |= {package for module in modules if (package := package_of(module))}
    return packages


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(PACKAGE.rglob("*.py")) if p != PUBLIC_NAMES_MODULE],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_imports_go_one_way(path: Path) -> None:
    package = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert package in ALLOWED, f"add {package} to the picture in docs/architecture.md and here"
    known = {name for name in imported_packages(path) if name != "__version__"}
    forbidden = known - ALLOWED[package] - {package}
    assert not forbidden, f"{package} must not import {sorted(forbidden)}"


def test_cpu_processes_load_no_tensor_library() -> None:
    """Nor does any of them need that another one has been imported before."""
    modules = (
        "tokasaurus",
        "tokasaurus.config.engine_config",
        "tokasaurus.cli.toka",
        "tokasaurus.launch.supervisor",
        "tokasaurus.manager.process",
        "tokasaurus.server.engine_client",
        "tokasaurus.server.app",
        "tokasaurus.server.process",
    )
    code = (
        f"import importlib, sys\nfor module in {modules}:\n"
        "    for name in [name for name in sys.modules if name.split('.')[0] == 'tokasaurus']:\n"
        "        del sys.modules[name]\n"
        "    importlib.import_module(module)\n"
        "    if {'torch', 'transformers', 'flashinfer'} & set(sys.modules):\n"
        "        sys.exit(f'{module} loads a tensor library')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
