"""What `make bench` found, as Markdown and SVG.

usage: bench_report.py [--docs]    write both again from results/bench.json; with --docs, put the
tables into docs/benchmarks.md, too
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import bench_plots
import bench_stage

HERE = Path(__file__).parent
DOCS_PAGE = HERE.parent / "docs" / "benchmarks.md"
NONE = "not measured"
ACKS = ("before", "after")
LATE = ("rqjobs", "rq", "arq 2x5", "Huey threads", "Celery prefork")
UNHAPPY = ("failing", "retried", "dependent")
Row = dict[str, Any]


class Found:
    """The numbers of a run, by what was measured."""

    def __init__(self, raw: dict[str, Any]):
        self.raw, self.rows = raw, raw["rows"]
        self.systems = raw["systems"]

    def pick(self, what: str, system: str, **more: Any) -> list[Row]:
        return [
            row
            for row in self.rows
            if row["what"] == what
            and row["system"] == system
            and row["values"]
            and all(row.get(name) == value for name, value in more.items())
        ]

    def value(self, what: str, system: str, **more: Any) -> float | None:
        """The median; of the run with the most jobs, where there are several."""
        rows = self.pick(what, system, **more)
        return (
            statistics.median(max(rows, key=lambda row: row.get("jobs", 0))["values"])
            if rows
            else None
        )

    def rate(self, system: str, setting: str) -> float | None:
        return self.value("drain", system, setting=setting)

    def best(self, setting: str, *acks: str, keeping: bool = False) -> tuple[float | None, str]:
        """The fastest peer of those that acknowledge so, and keep results (if it matters), and its rate."""
        rates = [
            (self.rate(system["name"], setting) or 0.0, system["name"])
            for system in self.systems
            if not system["name"].startswith("rqjobs")
            and system["acks"] in acks
            and not (keeping and system["results"] == "none")
        ]
        rate, name = max(rates, default=(0.0, ""))
        return rate or None, name


def write(results: Path, raw: dict[str, Any], add: bool = False) -> None:
    """Write bench.json, bench.md and the plots; with `add`, what an earlier run has measured besides stays in them."""
    results.mkdir(parents=True, exist_ok=True)
    file = results / "bench.json"
    if add and file.exists():
        old = json.loads(file.read_text())
        new = {(row["what"], row["system"]) for row in raw["rows"]}
        names = {system["name"] for system in raw["systems"]}
        raw["rows"] = [row for row in old["rows"] if (row["what"], row["system"]) not in new] + raw[
            "rows"
        ]
        raw["systems"] = [system for system in old["systems"] if system["name"] not in names] + raw[
            "systems"
        ]
    order = {system.name: place for place, system in enumerate(bench_stage.systems())}
    raw["systems"].sort(key=lambda system: order.get(system["name"], len(order)))
    file.write_text(json.dumps(raw, indent=1) + "\n")
    found = Found(raw)
    drawn = pictures(found)
    for name, picture in drawn.items():
        (results / f"{name}.svg").write_text(picture)
    (results / "bench.md").write_text(
        "\n".join(
            [
                "# What `make bench` measured\n",
                head(found),
                table(found),
                *(f"![{name}]({name}.svg)" for name in drawn),
                "\n## Beside what was to be reached\n",
                grid(("what", "to reach", "measured"), *reach(found)),
            ]
        )
    )


def head(found: Found) -> str:
    raw = found.raw
    versions = sorted({f"{system['version']} {system['found']}" for system in found.systems})
    when = sorted(row["when"][:16].replace("T", " ") for row in found.rows if "when" in row) or [
        raw["date"][:16]
    ]
    return (
        f"{when[0]} to {when[-1]} UTC. {raw['machine']}; Python {raw['python']}, "
        f"Redis {raw['redis']} on a unix socket; runs: {raw['runs']}, of which the medians are given. "
        f"{', '.join(versions)}.\n"
    )


def table(found: Found) -> str:
    """Throughput by system."""
    lines = [
        "| 10 workers, jobs that do nothing | jobs/s, persistence off | everysec | jobs | acknowledges | results "
        "| log |",
        "|---|---:|---:|---:|---|---|---|",
    ]
    for system in found.systems:
        name = system["name"]
        failed = [row["failed"] for row in found.rows if row["system"] == name and "failed" in row]
        jobs = " and ".join(
            f"{jobs:,}" for jobs in sorted({row["jobs"] for row in found.pick("drain", name)})
        )
        rates = [say("{:,.0f}", found.rate(name, setting)) for setting in ("off", "everysec")]
        if failed and NONE in rates:
            rates = [f"{NONE}: {failed[0].splitlines()[0][:120]}", ""]
        lines.append(
            f"| {name} | {' | '.join(rates)} | {jobs} | {system['acks']} | {system['results']} "
            f"| {system['log']} |"
        )
    return "\n".join(lines) + "\n"


def say(form: str, *values: Any) -> str:
    return NONE if None in values else form.format(*values)


def times(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours and theirs else None


def reach(found: Found) -> list[tuple[str, str, str]]:
    """What was to be reached, how much of it, and what was."""

    def both(form: str, what: str, **more: Any) -> str:
        return say(form, found.value(what, "rqjobs", **more), found.value(what, "rq", **more))

    def ratio(form: str, what: str) -> str:
        return say(form, times(found.value(what, "rqjobs"), found.value(what, "rq")))

    lines = []
    for setting, aim in (("off", "20,000 jobs/s"), ("everysec", "12,000 jobs/s")):
        ours, safe, fast = (
            found.rate("rqjobs", setting),
            found.best(setting, "after"),
            found.best(setting, *ACKS),
        )
        like = found.best(setting, "after", keeping=True)
        counts = [
            found.value("workers", "rqjobs", setting=setting, workers=count)
            for count in (2, 10, 50)
        ]
        best = max(filter(None, counts), default=None)
        lines += [
            (f"10 workers, persistence {setting}", aim, say("{:,.0f} jobs/s", ours)),
            (
                f"times the fastest that acknowledges after, {setting}",
                "3x",
                say("{:.1f}x ({})", times(ours, safe[0]), safe[1]),
            ),
            (
                f"times the fastest that also keeps results, {setting}",
                "",
                say("{:.1f}x ({})", times(ours, like[0]), like[1]),
            ),
            (
                f"times the fastest, {setting}",
                "above 1x",
                say("{:.1f}x ({})", times(ours, fast[0]), fast[1]),
            ),
            (
                f"times `rq worker`, {setting}",
                "100x",
                say("{:.0f}x", times(ours, found.rate("rq", setting))),
            ),
            (
                f"2 workers, to the best of 2, 10 and 50, {setting}",
                "0.7x",
                say("{:.2f}x", times(counts[0], best)),
            ),
            (
                f"50 workers, to the best of them, {setting}",
                "0.7x",
                say("{:.2f}x", times(counts[2], best)),
            ),
        ]
    million = times(
        *(found.value("backlog", "rqjobs", backlog=length) for length in (1_000_000, 10_000))
    )
    return [
        *lines,
        ("backlog of 1,000,000, to one of 10,000", "0.8x", say("{:.2f}x", million)),
        *(
            (
                f"overhead of a job of {nap * 1000:.0f} ms, 2 workers",
                "0.3 ms",
                both("{:.2f} ms (rq: {:.0f})", "overhead", nap=nap),
            )
            for nap in (0.001, 0.01, 0.1)
        ),
        (
            "10 workers, jobs of 100 ms: share of 100 jobs/s",
            "99 %",
            both("{:.1f} % (rq: {:.1f} %)", "ideal", nap=0.1),
        ),
        ("idle pick-up, median", "2 ms", both("{:.1f} ms (rq: {:.1f} ms)", "latency")),
        ("idle pick-up, 99th percentile", "10 ms", both("{:.1f} ms (rq: {:.1f} ms)", "p99")),
        (
            "10 idle workers with their Redis",
            "1 % of a core",
            both("{:.2f} % (rq: {:.2f} %)", "idle"),
        ),
        ("enqueue one, round trips", "1", both("{:.0f} (rq: {:.0f})", "trips")),
        ("enqueue one", "", both("{:.0f} us (rq: {:.0f} us)", "enqueue")),
        ("enqueue one, to RQ's time", "0.6x", ratio("{:.2f}x", "enqueue")),
        ("enqueue_many", "40 us a job", both("{:.0f} us a job (rq: {:.0f} us)", "many")),
        *(line for name in LATE for line in late(found, name)),
        (
            "delayed jobs that are due at once, into the queue",
            "20,000 jobs/s",
            both("{:,.0f} jobs/s (rq: {:,.0f})", "promotion"),
        ),
        *((f"{kind} jobs, times `rq worker`", "5x", ratio("{:.0f}x", kind)) for kind in UNHAPPY),
        ("memory of 10 busy workers (PSS)", "rq's", both("{:.0f} MiB (rq: {:.0f} MiB)", "pss")),
        ("Redis for a queued job", "rq's", both("{:,.0f} bytes (rq: {:,.0f})", "queued")),
        (
            "Redis for a finished job, its result included",
            "rq's",
            both("{:,.0f} bytes (rq: {:,.0f})", "finished"),
        ),
    ]


def late(found: Found, name: str) -> list[tuple[str, str, str]]:
    """How late a delayed job began."""
    values = [found.value(what, name) for what in ("lateness", "lateness p99", "earliest")]
    return [
        (
            f"delayed jobs begin after they are due, {name}",
            "50 ms (99 %)" if name == "rqjobs" else "",
            say("{:,.0f} ms, 99th percentile {:,.0f}, earliest {:,.0f}", *values),
        )
    ]


def grid(*lines: tuple[str, ...]) -> str:
    """A table; the first line is its head, numbers stand at the right."""
    head, *rest = (f"| {' | '.join(one)} |\n" for one in lines)
    return "".join([head, "|---" + "|---:" * (len(lines[0]) - 1) + "|\n", *rest])


def pictures(found: Found) -> dict[str, str]:
    where = f"{found.raw['machine'].split(' (')[0]}, Redis {found.raw['redis']}, {found.raw['date'][:10]}"
    bars = [
        (system["name"], found.rate(system["name"], "off"), found.rate(system["name"], "everysec"))
        for system in found.systems
    ]
    bars = sorted(
        (bar for bar in bars if bar[1] or bar[2]), key=lambda bar: -(bar[1] or bar[2] or 0)
    )
    series = {
        name: [(row["backlog"], statistics.median(row["values"])) for row in rows]
        for name in ("rqjobs", "rq")
        if (rows := found.pick("backlog", name))
    }
    delays = sorted(
        (
            (system["name"], rows[0]["values"])
            for system in found.systems
            if (rows := found.pick("latency", system["name"]))
        ),
        key=lambda one: statistics.median(one[1]),
    )
    drawn = {}
    if bars:
        drawn["throughput"] = bench_plots.throughput(
            bars,
            f"10 workers, jobs that do nothing; dark: persistence off, light: everysec. {where}",
        )
    if series:
        drawn["backlog"] = bench_plots.backlogs(
            series, f"The first jobs of a backlog, 10 workers, persistence off. {where}"
        )
    if delays:
        drawn["latency"] = bench_plots.latencies(
            delays,
            f"10 idle workers, one job at a time: median, middle half, 1st to 99th percentile. {where}",
        )
    return drawn


def put_into_docs(found: Found) -> None:
    """Replace the text between the two marks in docs/benchmarks.md by the tables and the plots."""
    others = [(what, measured) for what, _, measured in reach(found) if measured != NONE]
    plots = "".join(f"![{name}](../benchmarks/results/{name}.svg)\n" for name in pictures(found))
    ours = "\n".join(
        [head(found), table(found), grid(("other figures", "measured"), *others), plots]
    )
    DOCS_PAGE.write_text(
        re.sub(
            r"(<!-- bench -->\n).*?(<!-- /bench -->)",
            lambda match: match[1] + ours + match[2],
            DOCS_PAGE.read_text(),
            flags=re.S,
        )
    )


if __name__ == "__main__":
    raw = json.loads((HERE / "results" / "bench.json").read_text())
    write(HERE / "results", raw)
    if "--docs" in sys.argv:
        put_into_docs(Found(raw))
