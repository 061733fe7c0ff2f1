"""The report of `make bench`, as Markdown and SVG.

usage: bench_report.py [--docs]

Writes the report again from results/bench.json. With --docs, also updates docs/benchmarks.md.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import bench_environment
import bench_plots

HERE = Path(__file__).parent
DOCS_PAGE = HERE.parent / "docs" / "benchmarks.md"
NOT_MEASURED = "not measured"
ACKNOWLEDGEMENTS = ("before", "after")
LATENESS_SYSTEMS = ("rqjobs", "rq", "arq 2x5", "Huey threads", "Celery prefork")
OUTCOME_KINDS = ("failing", "retried", "dependent")
POLICY_SYSTEMS = ("rqjobs", "Dramatiq 2x5", "Huey processes")
POLICY_KINDS = {
    "noop": "empty jobs, in the same run as the next rows",
    "limited": "empty jobs of 8 keys, 4 of a key at a time (Huey: 1)",
    "crowded": "jobs of 5 ms of one key, 4 at a time (Huey: 1)",
    "rated": "empty jobs at a rate of 200/s",
}
FAILURE_MAX_CHARACTERS = 120
Row = dict[str, Any]
TargetRow = tuple[str, str, str]  # a figure's name, its target, its measured value


class Results:
    """The rows of a run, with look-ups by what was measured."""

    def __init__(self, raw: dict[str, Any]):
        self.raw = raw
        self.rows = raw["rows"]
        self.systems = raw["systems"]

    def select(self, what: str, system: str, **details: Any) -> list[Row]:
        return [
            row
            for row in self.rows
            if row["what"] == what
            and row["system"] == system
            and row["values"]
            and all(row.get(name) == value for name, value in details.items())
        ]

    def median(self, what: str, system: str, **details: Any) -> float | None:
        """The median of the row with the most jobs; None if nothing was measured."""
        rows = self.select(what, system, **details)
        if not rows:
            return None
        return statistics.median(max(rows, key=lambda row: row.get("jobs", 0))["values"])

    def rate(self, system: str, setting: str) -> float | None:
        return self.median("drain", system, setting=setting)

    def fastest(
        self, setting: str, *acks: str, keeps_results: bool = False
    ) -> tuple[float | None, str]:
        """The rate and the name of the fastest system other than rqjobs.

        Only systems with one of these kinds of acknowledgement count; with `keeps_results`, only
        systems that keep results.
        """
        rates = [
            (self.rate(system["name"], setting) or 0.0, system["name"])
            for system in self.systems
            if not system["name"].startswith("rqjobs")
            and system["acks"] in acks
            and not (keeps_results and system["results"] == "none")
        ]
        rate, name = max(rates, default=(0.0, ""))
        return rate or None, name


def write(results: Path, raw: dict[str, Any], add: bool = False) -> None:
    """Write bench.json, bench.md and the plots; with `add`, keep the other rows of earlier runs."""
    results.mkdir(parents=True, exist_ok=True)
    file = results / "bench.json"
    if add and file.exists():
        merge(json.loads(file.read_text()), raw)
    order = {system.name: index for index, system in enumerate(bench_environment.systems())}
    raw["systems"].sort(key=lambda system: order.get(system["name"], len(order)))
    file.write_text(json.dumps(raw, indent=1) + "\n")
    found = Results(raw)
    drawn = plots(found)
    for name, picture in drawn.items():
        (results / f"{name}.svg").write_text(picture)
    parts = [
        "# Results of `make bench`\n",
        summary(found),
        throughput_table(found),
        *(f"![{name}]({name}.svg)" for name in drawn),
        "\n## Targets\n",
        markdown_table(("figure", "target", "measured"), *targets(found)),
    ]
    (results / "bench.md").write_text("\n".join(parts))


def merge(old: dict[str, Any], raw: dict[str, Any]) -> None:
    """Add to `raw` the old rows that were not measured again, and the old systems."""
    measured = {(row["what"], row["system"]) for row in raw["rows"]}
    names = {system["name"] for system in raw["systems"]}
    kept_rows = [row for row in old["rows"] if (row["what"], row["system"]) not in measured]
    kept_systems = [system for system in old["systems"] if system["name"] not in names]
    raw["rows"] = kept_rows + raw["rows"]
    raw["systems"] = kept_systems + raw["systems"]


def summary(found: Results) -> str:
    """When and where the figures were measured, in one paragraph."""
    raw = found.raw
    versions = sorted({f"{system['version']} {system['found']}" for system in found.systems})
    when = sorted(row["when"][:16].replace("T", " ") for row in found.rows if "when" in row)
    when = when or [raw["date"][:16]]
    return (
        f"Measured from {when[0]} to {when[-1]} UTC on {raw['machine']}, with Python "
        f"{raw['python']} and Redis {raw['redis']} on a Unix socket. Figures are medians "
        f"(runs: {raw['runs']}). Versions: {', '.join(versions)}.\n"
    )


def throughput_table(found: Results) -> str:
    """The throughput of every system, and the facts that explain it."""
    lines = [
        "| 10 workers, empty jobs | jobs/s, persistence off | jobs/s, everysec | jobs "
        "| acknowledges | results | log |",
        "|---|---:|---:|---:|---|---|---|",
    ]
    for system in found.systems:
        name = system["name"]
        failed = [row["failed"] for row in found.rows if row["system"] == name and "failed" in row]
        sizes = sorted({row["jobs"] for row in found.select("drain", name)})
        jobs = " and ".join(f"{size:,}" for size in sizes)
        rates = [show("{:,.0f}", found.rate(name, setting)) for setting in ("off", "everysec")]
        if failed and NOT_MEASURED in rates:
            reason = failed[0].splitlines()[0][:FAILURE_MAX_CHARACTERS]
            rates = [f"{NOT_MEASURED}: {reason}", ""]
        lines.append(
            f"| {name} | {' | '.join(rates)} | {jobs} | {system['acks']} | {system['results']} "
            f"| {system['log']} |"
        )
    return "\n".join(lines) + "\n"


def show(form: str, *values: Any) -> str:
    """Format the values; `NOT_MEASURED` if one of them is None."""
    if None in values:
        return NOT_MEASURED
    return form.format(*values)


def ratio(value: float | None, reference: float | None) -> float | None:
    if value and reference:
        return value / reference
    return None


def show_both(found: Results, form: str, what: str, **details: Any) -> str:
    """The medians of rqjobs and of RQ, in this order."""
    return show(form, found.median(what, "rqjobs", **details), found.median(what, "rq", **details))


def show_ratio(found: Results, form: str, what: str) -> str:
    """The median of rqjobs divided by that of RQ."""
    return show(form, ratio(found.median(what, "rqjobs"), found.median(what, "rq")))


def targets(found: Results) -> list[TargetRow]:
    """Every figure with its target; a figure without a target has an empty one."""
    return [
        *throughput_targets(found, "off", "20,000 jobs/s"),
        *throughput_targets(found, "everysec", "12,000 jobs/s"),
        *worker_targets(found),
        *enqueue_targets(found),
        *delay_targets(found),
        *outcome_targets(found),
        *memory_targets(found),
        *policy_targets(found),
    ]


def throughput_targets(found: Results, setting: str, target: str) -> list[TargetRow]:
    ours = found.rate("rqjobs", setting)
    late_ack = found.fastest(setting, "after")
    with_results = found.fastest(setting, "after", keeps_results=True)
    fastest = found.fastest(setting, *ACKNOWLEDGEMENTS)
    counts = [
        found.median("workers", "rqjobs", setting=setting, workers=count) for count in (2, 10, 50)
    ]
    best = max(filter(None, counts), default=None)
    named_ratio = "{:.1f}x ({})"
    suffix = f", persistence {setting}"
    return [
        (f"throughput, 10 workers{suffix}", target, show("{:,.0f} jobs/s", ours)),
        (
            f"throughput relative to the fastest system that acknowledges after the run{suffix}",
            "3x",
            show(named_ratio, ratio(ours, late_ack[0]), late_ack[1]),
        ),
        (
            f"throughput relative to the fastest system that also keeps results{suffix}",
            "",
            show(named_ratio, ratio(ours, with_results[0]), with_results[1]),
        ),
        (
            f"throughput relative to the fastest system{suffix}",
            "above 1x",
            show(named_ratio, ratio(ours, fastest[0]), fastest[1]),
        ),
        (
            f"throughput relative to `rq worker`{suffix}",
            "100x",
            show("{:.0f}x", ratio(ours, found.rate("rq", setting))),
        ),
        (
            f"2 workers relative to the best of 2, 10 and 50{suffix}",
            "0.7x",
            show("{:.2f}x", ratio(counts[0], best)),
        ),
        (
            f"50 workers relative to the best of 2, 10 and 50{suffix}",
            "0.7x",
            show("{:.2f}x", ratio(counts[2], best)),
        ),
    ]


def worker_targets(found: Results) -> list[TargetRow]:
    """Long queues, overhead, latency, and the cost of idle workers."""
    long_queue = found.median("backlog", "rqjobs", backlog=1_000_000)
    short_queue = found.median("backlog", "rqjobs", backlog=10_000)
    overheads = [
        (
            f"overhead of a job of {sleep * 1000:.0f} ms, 2 workers",
            "0.3 ms",
            show_both(found, "{:.2f} ms (rq: {:.0f})", "overhead", sleep=sleep),
        )
        for sleep in (0.001, 0.01, 0.1)
    ]
    latency_form = "{:.1f} ms (rq: {:.1f} ms)"
    return [
        (
            "throughput with a backlog of 1,000,000 relative to 10,000",
            "0.8x",
            show("{:.2f}x", ratio(long_queue, short_queue)),
        ),
        *overheads,
        (
            "10 workers, jobs of 100 ms: share of the ideal 100 jobs/s",
            "99 %",
            show_both(found, "{:.1f} % (rq: {:.1f} %)", "ideal", sleep=0.1),
        ),
        ("latency, idle workers, median", "2 ms", show_both(found, latency_form, "latency")),
        (
            "latency, idle workers, 99th percentile",
            "10 ms",
            show_both(found, latency_form, "p99"),
        ),
        (
            "CPU of 10 idle workers and their Redis",
            "1 % of a core",
            show_both(found, "{:.2f} % (rq: {:.2f} %)", "idle"),
        ),
    ]


def enqueue_targets(found: Results) -> list[TargetRow]:
    return [
        ("enqueue, round trips", "1", show_both(found, "{:.0f} (rq: {:.0f})", "trips")),
        ("enqueue, time", "", show_both(found, "{:.0f} us (rq: {:.0f} us)", "enqueue")),
        ("enqueue, time relative to RQ's", "0.6x", show_ratio(found, "{:.2f}x", "enqueue")),
        (
            "enqueue_many, time per job",
            "40 us",
            show_both(found, "{:.0f} us (rq: {:.0f} us)", "many"),
        ),
    ]


def delay_targets(found: Results) -> list[TargetRow]:
    rows = []
    for name in LATENESS_SYSTEMS:
        values = [found.median(what, name) for what in ("lateness", "lateness p99", "earliest")]
        measured = show("{:,.0f} ms, 99th percentile {:,.0f}, earliest {:,.0f}", *values)
        target = "50 ms (99 %)" if name == "rqjobs" else ""
        rows.append((f"lateness of delayed jobs, {name}", target, measured))
    rows.append(
        (
            "delayed jobs that are due together, moved to the queue",
            "20,000 jobs/s",
            show_both(found, "{:,.0f} jobs/s (rq: {:,.0f})", "promotion"),
        )
    )
    return rows


def outcome_targets(found: Results) -> list[TargetRow]:
    return [
        (
            f"throughput of {kind} jobs relative to `rq worker`",
            "5x",
            show_ratio(found, "{:.0f}x", kind),
        )
        for kind in OUTCOME_KINDS
    ]


def memory_targets(found: Results) -> list[TargetRow]:
    return [
        (
            "memory of 10 busy workers (PSS)",
            "rq's",
            show_both(found, "{:.0f} MiB (rq: {:.0f} MiB)", "pss"),
        ),
        (
            "Redis memory of a queued job",
            "rq's",
            show_both(found, "{:,.0f} bytes (rq: {:,.0f})", "queued"),
        ),
        (
            "Redis memory of a finished job and its result",
            "rq's",
            show_both(found, "{:,.0f} bytes (rq: {:,.0f})", "finished"),
        ),
    ]


def policy_targets(found: Results) -> list[TargetRow]:
    """Jobs with limits and rates, beside the means of other systems, and unique enqueues."""
    rows = []
    for kind, text in POLICY_KINDS.items():
        rates = [
            (name, rate)
            for name in POLICY_SYSTEMS
            if (rate := found.median(f"policy {kind}", name)) is not None
        ]
        measured = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates)
        rows.append((f"{text}, jobs/s", "", measured or NOT_MEASURED))
    for kind in ("plain", "unique"):
        form = "{:,.0f} enqueues/s (rq: {:,.0f})"
        rows.append((f"{kind} enqueues, one by one", "", show_both(found, form, f"enqueue {kind}")))
    return rows


def markdown_table(*rows: tuple[str, ...]) -> str:
    """A table whose first row is the header. All columns but the first are right-aligned."""
    header, *body = (f"| {' | '.join(row)} |\n" for row in rows)
    return "".join([header, "|---" + "|---:" * (len(rows[0]) - 1) + "|\n", *body])


def plots(found: Results) -> dict[str, str]:
    """The SVG of each plot that has data, by its file's stem."""
    machine = found.raw["machine"].split(" (")[0]
    place = f"{machine}, Redis {found.raw['redis']}, {found.raw['date'][:10]}"
    drawn = {}
    if bars := throughput_bars(found):
        note = f"10 workers, empty jobs; dark: persistence off, light: everysec. {place}"
        drawn["throughput"] = bench_plots.throughput(bars, note)
    if series := backlog_series(found):
        note = f"The first jobs of a backlog, 10 workers, persistence off. {place}"
        drawn["backlog"] = bench_plots.backlogs(series, note)
    if latencies := latency_values(found):
        note = (
            "10 idle workers, one job at a time: median, middle half, 1st to 99th percentile. "
            f"{place}"
        )
        drawn["latency"] = bench_plots.latencies(latencies, note)
    return drawn


def throughput_bars(found: Results) -> list[tuple[str, float | None, float | None]]:
    """Each measured system with its rates, the fastest first."""
    names = [system["name"] for system in found.systems]
    bars = [(name, found.rate(name, "off"), found.rate(name, "everysec")) for name in names]
    measured = [bar for bar in bars if bar[1] or bar[2]]
    return sorted(measured, key=lambda bar: -(bar[1] or bar[2] or 0))


def backlog_series(found: Results) -> dict[str, list[tuple[int, float]]]:
    """For rqjobs and RQ, the length of each backlog and the rate."""
    return {
        name: [(row["backlog"], statistics.median(row["values"])) for row in rows]
        for name in ("rqjobs", "rq")
        if (rows := found.select("backlog", name))
    }


def latency_values(found: Results) -> list[tuple[str, list[float]]]:
    """Each measured system with its latencies in milliseconds, the fastest first."""
    values = [
        (system["name"], rows[0]["values"])
        for system in found.systems
        if (rows := found.select("latency", system["name"]))
    ]
    return sorted(values, key=lambda entry: statistics.median(entry[1]))


def update_docs(found: Results) -> None:
    """Replace the text between the two marks in docs/benchmarks.md by the tables and the plots."""
    figures = [
        (figure, measured) for figure, _, measured in targets(found) if measured != NOT_MEASURED
    ]
    images = "".join(f"![{name}](../benchmarks/results/{name}.svg)\n" for name in plots(found))
    text = "\n".join(
        [
            summary(found),
            throughput_table(found),
            markdown_table(("other figures", "measured"), *figures),
            images,
        ]
    )
    DOCS_PAGE.write_text(
        re.sub(
            r"(<!-- bench -->\n).*?(<!-- /bench -->)",
            lambda match: match[1] + text + match[2],
            DOCS_PAGE.read_text(),
            flags=re.S,
        )
    )


if __name__ == "__main__":
    raw_results = json.loads((HERE / "results" / "bench.json").read_text())
    write(HERE / "results", raw_results)
    if "--docs" in sys.argv:
        update_docs(Results(raw_results))
