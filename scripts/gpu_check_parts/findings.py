"""Where a part writes what it found; needs nothing but Python."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Findings:
    """A part's results, in its file from the moment they are known: a part that is stopped loses
    nothing that it had found."""

    path: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, **row: Any) -> None:
        self.rows.append(row)
        self.path.write_text(json.dumps(self.rows, indent=1))


def findings_of(out: Path, part: str) -> list[dict[str, Any]]:
    """What another part has found so far."""
    path = out / f"{part}.json"
    return json.loads(path.read_text()) if path.exists() else []
