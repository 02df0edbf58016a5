"""What was found, as a table for people."""

from pathlib import Path
from typing import Any

from gpu_check_parts.findings import findings_of

_BAD = ("failure", "error")
_COLUMNS = ("tokens/s", "ms/step", "of roofline", "idle", "recompiles")


def render(out: Path, statuses: dict[str, dict[str, Any]]) -> str:
    """One line per part, then one per measurement."""
    lines = ["part              status    seconds"]
    for part, status in statuses.items():
        lines.append(
            f"{part:<17} {status['status']:<9} {status['seconds']:7.1f}  {status['error']}"
        )
    lines += ["", f"{'measurement':<62}" + "".join(f"{name:>12}" for name in _COLUMNS)]
    for part in statuses:
        lines += [_row(row) for row in findings_of(out, part) if "tokens_per_second" in row]
    lines += _other_lines(out)
    return "\n".join(line.rstrip() for line in lines)


def _row(row: dict[str, Any]) -> str:
    words = [row["what"], row.get("model", ""), row.get("variant", ""), row.get("sampling", "")]
    for name in ("batch_size", "context", "num_tokens", "use_hydragen", "num_requests"):
        if name in row:
            words.append(f"{name}={row[name]}")
    cells = [
        f"{row['tokens_per_second']:.0f}",
        _cell(row, "milliseconds_per_step", "{:.3f}"),
        _cell(row, "share_of_roofline", "{:.1%}"),
        _cell(row, "device_idle_share", "{:.1%}"),
        _cell(row, "num_recompiles", "{}"),
    ]
    text = " ".join(word for word in words if word)
    return f"{text:<62}" + "".join(f"{cell:>12}" for cell in cells)


def _cell(row: dict[str, Any], name: str, form: str) -> str:
    return form.format(row[name]) if name in row else "-"


def _other_lines(out: Path) -> list[str]:
    lines = [""]
    for row in findings_of(out, "ceilings"):
        rate = row.get("bytes_per_second", 0) / 1e12 or row.get("flops_per_second", 0) / 1e12
        unit = "TB/s" if "bytes_per_second" in row else "TFLOP/s"
        lines.append(f"measured {row['what']}: {rate:.2f} {unit}")
    monkeys = {row["use_hydragen"]: row for row in findings_of(out, "monkeys")}
    if len(monkeys) == 2:
        ratio = monkeys[True]["tokens_per_second"] / monkeys[False]["tokens_per_second"]
        lines.append(f"Hydragen on monkeys: {ratio:.2f} times as fast as without")
    tests = findings_of(out, "tests") + findings_of(out, "variants")
    outcomes = [row["outcome"] for row in tests]
    counts = {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}
    lines += [f"{row['outcome']}: {row['test']}" for row in tests if row["outcome"] in _BAD]
    lines.append("tests: " + (", ".join(f"{n} {what}" for what, n in counts.items()) or "none"))
    for part in ("llama-1b", "llama-8b"):
        for row in findings_of(out, part):
            if row["what"] == "failed":
                lines.append(f"{part}, {row['variant']}: {row['error'].splitlines()[0][:150]}")
    return lines
