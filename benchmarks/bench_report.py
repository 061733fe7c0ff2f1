"""What `make bench` found, as Markdown and SVG.

usage: bench_report.py [--readme]    write it again from results/bench.json; with --readme its first table into README.md
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Row = dict[str, Any]


def write(results: Path, found: dict[str, Any], add: bool = False) -> None:
    """Write bench.json, bench.md and the plots; with `add`, what an earlier run found besides stays in them."""
    results.mkdir(parents=True, exist_ok=True)
    file = results / "bench.json"
    if add and file.exists():
        old = json.loads(file.read_text())
        new = {(row["what"], row["system"]) for row in found["rows"]}
        names = {system["name"] for system in found["systems"]}
        found["rows"] = [row for row in old["rows"] if (row["what"], row["system"]) not in new] + found["rows"]
        found["systems"] = [system for system in old["systems"] if system["name"] not in names] + found["systems"]
    file.write_text(json.dumps(found, indent=1))
    (results / "bench.md").write_text(markdown(found))


def markdown(found: dict[str, Any]) -> str:
    return "# Measured\n\n" + head(found) + "\n" + throughput(found)


def head(found: dict[str, Any]) -> str:
    versions = sorted({f"{system['version']} {system['found']}" for system in found["systems"]})
    return (f"{found['date']}; {found['machine']}; Python {found['python']}, Redis {found['redis']}; medians of "
            f"{found['runs']} runs.\n{', '.join(versions)}.\n")


def pick(found: dict[str, Any], what: str, system: str = "", **more: Any) -> list[Row]:
    return [row for row in found["rows"] if row["what"] == what and system in ("", row["system"])
            and all(row.get(name) == value for name, value in more.items())]


def middle(rows: list[Row]) -> float | None:
    return statistics.median(rows[0]["values"]) if rows and rows[0]["values"] else None


def throughput(found: dict[str, Any]) -> str:
    lines = ["| system | jobs/s, persistence off | everysec | jobs | acknowledges | results |", "|---|---:|---:|---:|---|---|"]
    for system in found["systems"]:
        cells = []
        for setting in ("off", "everysec"):
            value = middle(pick(found, "drain", system["name"], setting=setting, jobs=system["jobs"]))
            cells.append("not measured" if value is None else f"{value:,.0f}")
        lines.append(f"| {system['name']} | {' | '.join(cells)} | {system['jobs']:,} | {system['acks']} | {system['results']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write(HERE / "results", json.loads((HERE / "results" / "bench.json").read_text()))
