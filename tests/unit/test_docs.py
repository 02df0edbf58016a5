"""README.md, CLAUDE.md and docs/ name only paths, options and commands that exist."""

import re
import tomllib
from pathlib import Path

import pytest

from tokasaurus.config.engine_config import EngineConfig

ROOT = Path(__file__).parents[2]
DOCS = [ROOT / "README.md", ROOT / "CLAUDE.md", *sorted((ROOT / "docs").glob("*.md"))]
PATH = re.compile(
    r"`((?:tokasaurus|tests|scripts|docs|benchmarks|deploy|\.ci)/[\w./-]*|Makefile|pyproject\.toml)`"
)
TOKA_COMMAND = re.compile(r"(?<![\w-])toka((?:[ ]+[a-z_]+=\S+)+)")


@pytest.mark.parametrize("doc", DOCS, ids=lambda p: p.name)
def test_named_paths_exist(doc: Path) -> None:
    missing = [path for path in PATH.findall(doc.read_text()) if not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize("doc", DOCS, ids=lambda p: p.name)
def test_named_options_exist(doc: Path) -> None:
    known = set(EngineConfig().to_dict())
    for command in TOKA_COMMAND.findall(doc.read_text()):
        options = {word.split("=")[0] for word in command.split()} - {"key"}  # "key=value"
        assert options <= known, f"toka{command} names {sorted(options - known)}"


@pytest.mark.parametrize("doc", DOCS, ids=lambda p: p.name)
def test_every_option_row_exists(doc: Path) -> None:
    known = set(EngineConfig().to_dict())
    rows = re.findall(r"^\| `([a-z_]+)=[^`]*` \|", doc.read_text(), re.MULTILINE)
    assert set(rows) <= known


@pytest.mark.parametrize("doc", DOCS, ids=lambda p: p.name)
def test_make_targets_exist(doc: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)", doc.read_text()))
    assert named <= targets


def test_readme_opens_with_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme.index("make serve") < readme.index("make test") < 600


def test_commands_are_installed() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for name in set(re.findall(r"`(toka(?:-[a-z]+)?)[ `]", (ROOT / "README.md").read_text())):
        assert name in scripts


def test_guide_is_short() -> None:
    assert len((ROOT / "CLAUDE.md").read_text().splitlines()) <= 120
