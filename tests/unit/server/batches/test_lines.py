"""The checker, on large files and nasty lines."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.server.batches.batch_client import COMPLETIONS, line
from tokasaurus.server.batches import lines
from tokasaurus.server.batches.lines import check_lines, read_items


def checked(tmp_path: Path, content: bytes, max_line_bytes: int = 2000) -> lines.Checked:
    path = tmp_path / "input"
    path.write_bytes(content)
    return check_lines(path, COMPLETIONS, max_line_bytes, tmp_path / "errors")


def test_all_errors_are_in_the_file_and_the_first_are_shown(tmp_path: Path) -> None:
    found = checked(tmp_path, b"nonsense\n" * 5000)
    assert (found.num_items, found.num_errors) == (5000, 5000)
    assert [e.line for e in found.shown_errors] == list(range(1, lines.MAX_SHOWN_ERRORS + 1))
    written = (tmp_path / "errors").read_text().splitlines()
    assert [json.loads(one)["line"] for one in written] == list(range(1, 5001))


def test_a_line_that_is_too_long_hides_none(tmp_path: Path) -> None:
    content = f"{line('a')}\n{line('b', prompt='x' * 200_000)}\n{line('a')}\n"
    found = checked(tmp_path, content.encode())
    assert [(e.line, e.code) for e in found.shown_errors] == [
        (2, "line_too_long"),
        (3, "duplicate_custom_id"),
    ]


def test_the_limit_is_exact(tmp_path: Path) -> None:
    one = line("a").encode()
    assert checked(tmp_path, one + b"\n", len(one)).num_errors == 0
    assert checked(tmp_path, one, len(one)).num_errors == 0
    assert checked(tmp_path, one + b"\n", len(one) - 1).num_errors == 1


def test_too_many_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINES", 3)
    content = "".join(f"{line(str(i))}\n" for i in range(10))
    [error] = checked(tmp_path, content.encode()).shown_errors
    assert (error.line, error.code) == (4, "too_many_lines")


@given(st.binary(max_size=200))
def test_no_bytes_break_it(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    tmp_path = tmp_path_factory.mktemp("lines")
    found = checked(tmp_path, data)
    assert found.num_errors >= 1
    assert len(found.shown_errors) == found.num_errors


def test_chunks_hold_every_item(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_text("\n".join(f"{line(str(i))}\n" for i in range(10)))
    with path.open("rb") as source:
        chunks = list(read_items(source, 4, 10**6))
    assert [len(chunk) for chunk in chunks] == [4, 4, 2]
    with path.open("rb") as source:
        small = list(read_items(source, 100, 1))
    assert [item.custom_id for chunk in small for item in chunk] == [str(i) for i in range(10)]
    assert len(small) == 10
