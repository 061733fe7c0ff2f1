"""What `make bench` found, as Markdown and SVG.

usage: bench_report.py [--readme]    write both again from results/bench.json; put the tables into README.md, too
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import bench_plots

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
NONE = "not measured"
Row = dict[str, Any]


class Found:
    """The numbers of a run, by what was measured."""

    def __init__(self, raw: dict[str, Any]):
        self.raw, self.rows = raw, raw["rows"]
        self.systems = raw["systems"]

    def pick(self, what: str, system: str, **more: Any) -> list[Row]:
        return [row for row in self.rows if row["what"] == what and row["system"] == system and row["values"]
                and all(row.get(name) == value for name, value in more.items())]

    def value(self, what: str, system: str, **more: Any) -> float | None:
        """The median; of the run with the most jobs, where there are several."""
        rows = self.pick(what, system, **more)
        return statistics.median(max(rows, key=lambda row: row.get("jobs", 0))["values"]) if rows else None

    def rate(self, system: str, setting: str) -> float | None:
        return self.value("drain", system, setting=setting)

    def best(self, setting: str, acks: str = "") -> tuple[str, float] | None:
        """The fastest peer (of those that acknowledge so)."""
        rates = [(system["name"], self.rate(system["name"], setting)) for system in self.systems
                 if system["name"] != "rqjobs" and acks in ("", system["acks"])]
        return max(((name, rate) for name, rate in rates if rate), key=lambda one: one[1], default=None)

    def ratio(self, what: str, **more: Any) -> float | None:
        ours, theirs = self.value(what, "rqjobs", **more), self.value(what, "rq", **more)
        return ours / theirs if ours and theirs else None


def write(results: Path, raw: dict[str, Any], add: bool = False) -> None:
    """Write bench.json, bench.md and the plots; with `add`, what an earlier run has measured besides stays in them."""
    results.mkdir(parents=True, exist_ok=True)
    file = results / "bench.json"
    if add and file.exists():
        old = json.loads(file.read_text())
        new = {(row["what"], row["system"]) for row in raw["rows"]}
        names = {system["name"] for system in raw["systems"]}
        raw["rows"] = [row for row in old["rows"] if (row["what"], row["system"]) not in new] + raw["rows"]
        raw["systems"] = [system for system in old["systems"] if system["name"] not in names] + raw["systems"]
        raw["systems"].sort(key=lambda system: (system["module"] != "rq_jobs", system["module"]))
    file.write_text(json.dumps(raw, indent=1) + "\n")
    found = Found(raw)
    goals = grid(("what", "to reach", "measured"), *reach(found))
    (results / "bench.md").write_text("\n".join([
        "# What `make bench` measured\n", head(found), table(found), plots(found),
        "## Beside what was to be reached\n", goals, "## Every row\n", all_rows(found)]))
    for name, picture in pictures(found).items():
        (results / f"{name}.svg").write_text(picture)


def head(found: Found) -> str:
    raw = found.raw
    versions = sorted({f"{system['version']} {system['found']}" for system in found.systems})
    return (f"{raw['date']}, in {raw['seconds'] / 60:.0f} minutes. {raw['machine']}; Python {raw['python']}, "
            f"Redis {raw['redis']} on a unix socket; runs: {raw['runs']}, of which the medians are given. "
            f"{', '.join(versions)}.\n")


def plots(found: Found) -> str:
    return "".join(f"![{name}]({name}.svg)\n" for name in pictures(found))


def number(value: float | None, form: str = ",.0f") -> str:
    return NONE if value is None else f"{value:{form}}"


def table(found: Found) -> str:
    """Throughput by system."""
    lines = ["| 10 workers, jobs that do nothing | jobs/s, persistence off | everysec | jobs | acknowledges | results "
             "| log |", "|---|---:|---:|---:|---|---|---|"]
    for system in found.systems:
        name = system["name"]
        failed = [row["failed"] for row in found.rows if row["system"] == name and "failed" in row]
        jobs = max([row["jobs"] for row in found.pick("drain", name)], default=0)
        rates = [number(found.rate(name, setting)) for setting in ("off", "everysec")]
        if failed and NONE in rates:
            rates = [f"{NONE}: {failed[0].splitlines()[0][:120]}", ""]
        lines.append(f"| {name} | {' | '.join(rates)} | {jobs:,} | {system['acks']} | {system['results']} "
                     f"| {system['log']} |")
    return "\n".join(lines) + "\n"


def say(form: str, *values: Any) -> str:
    return NONE if None in values else form.format(*values)


def reach(found: Found) -> list[tuple[str, str, str]]:
    """What was to be reached, how much of it, and what was."""
    off, every, value = found.rate("rqjobs", "off"), found.rate("rqjobs", "everysec"), found.value
    lines = [("drain, 10 workers, persistence off", "20,000 jobs/s", say("{:,.0f} jobs/s", off)),
             ("the same, everysec", "12,000 jobs/s", say("{:,.0f} jobs/s", every))]
    for setting, ours in (("off", off), ("everysec", every)):
        for acks, words, wanted in (("after", "the fastest peer that acknowledges after", "3x"),
                                    ("", "the fastest peer", "above 1x")):
            best = found.best(setting, acks)
            lines.append((f"to {words}, {setting}", wanted,
                          say("{:.1f}x ({})", ours / best[1] if best and ours else None, best and best[0])))
        stock = found.rate("rq", setting)
        lines.append((f"to `rq worker`, {setting}", "100x", say("{:.0f}x", ours / stock if ours and stock else None)))
        counts = {count: value("workers", "rqjobs", setting=setting, workers=count) for count in (2, 10, 50)}
        most = max((rate for rate in counts.values() if rate), default=None)
        lines += [(f"{count} workers to the best count, {setting}", "0.7x",
                   say("{:.2f}x", rate / most if rate and most else None))
                  for count, rate in counts.items() if count != 10]
    short, long = (value("backlog", "rqjobs", backlog=length) for length in (10_000, 1_000_000))
    lines.append(("backlog of 1,000,000 to one of 10,000", "0.8x to 1.2x",
                  say("{:.2f}x", long / short if short and long else None)))
    for nap in (0.001, 0.01, 0.1):
        lines.append((f"overhead of a job of {nap * 1000:.0f} ms", "0.3 ms",
                      say("{:.3f} ms (rq: {:.0f} ms)", value("overhead", "rqjobs", nap=nap),
                          value("overhead", "rq", nap=nap))))
    lines.append(("jobs of 100 ms, of the ideal 100 jobs/s", "99 %",
                  say("{:.1f} % (rq: {:.1f} %)", value("ideal", "rqjobs", nap=0.1), value("ideal", "rq", nap=0.1))))
    delays = {name: found.pick("latency", name) for name in ("rqjobs", "rq")}
    for words, wanted, pick in (("median", "2 ms", lambda row: statistics.median(row["values"])),
                                ("99th percentile", "10 ms", lambda row: row["p99"])):
        lines.append((f"idle pick-up, {words}", wanted, say(
            "{:.2f} ms (rq: {:.1f} ms)", *(pick(rows[0]) if rows else None for rows in delays.values()))))
    lines.append(("10 idle workers and Redis", "1 % of a core",
                  say("{:.2f} % (rq: {:.2f} %)", value("idle", "rqjobs"), value("idle", "rq"))))
    writes = {name: rows[0]["writes"] if (rows := found.pick("enqueue", name)) else None for name in ("rqjobs", "rq")}
    lines.append(("enqueue one, round trips", "1", say("{} (rq: {})", *writes.values())))
    lines.append(("enqueue one, time to RQ's", "0.6x", say(
        "{:.2f}x ({:.0f} us)", found.ratio("enqueue"), value("enqueue", "rqjobs"))))
    lines.append(("enqueue_many", "40 us a job", say("{:.0f} us (rq: {:.0f} us)", value("many", "rqjobs"),
                                                     value("many", "rq"))))
    lines += [(f"{kind} jobs to `rq worker`", "5x", say("{:.0f}x ({:,.0f} runs/s)", found.ratio(kind),
                                                        value(kind, "rqjobs")))
              for kind in ("failing", "retried", "dependent")]
    lines += [(words, "rq's", say("{:,.0f} {} (rq: {:,.0f})", value(what, "rqjobs"), unit, value(what, "rq")))
              for what, words, unit in (("pss", "memory of 10 busy workers (PSS)", "MiB"),
                                        ("queued", "Redis for a queued job", "bytes"),
                                        ("finished", "Redis for a finished job, result included", "bytes"))]
    return lines


def grid(*lines: tuple[str, ...]) -> str:
    """A table; the first line is its head, numbers stand at the right."""
    head, *rest = (f"| {' | '.join(one)} |\n" for one in lines)
    return "".join([head, "|---" + "|---:" * (len(lines[0]) - 1) + "|\n", *rest])


def all_rows(found: Found) -> str:
    lines = ["| scenario | system | with | median | least | most | runs |", "|---|---|---|---:|---:|---:|---:|"]
    for row in found.rows:
        if values := row["values"]:
            known = ("what", "system", "unit", "values", "when")
            more = ", ".join(f"{name} {value}" for name, value in row.items() if name not in known)
            figures = " | ".join(f"{value:,.2f}" for value in (statistics.median(values), min(values), max(values)))
            lines.append(f"| {row['what']} ({row['unit']}) | {row['system']} | {more} | {figures} | {len(values)} |")
        else:
            lines.append(f"| {row['what']} | {row['system']} | {row['failed'].splitlines()[0][:120]} | | | | |")
    return "\n".join(lines) + "\n"


def pictures(found: Found) -> dict[str, str]:
    where = f"{found.raw['machine'].split(' (')[0]}, Redis {found.raw['redis']}, {found.raw['date'][:10]}"
    bars = [(system["name"], found.rate(system["name"], "off"), found.rate(system["name"], "everysec"))
            for system in found.systems]
    bars = sorted((bar for bar in bars if bar[1] or bar[2]), key=lambda bar: -(bar[1] or bar[2] or 0))
    series = {name: [(row["backlog"], statistics.median(row["values"])) for row in rows]
              for name in ("rqjobs", "rq") if (rows := found.pick("backlog", name))}
    delays = sorted(((system["name"], rows[0]["values"]) for system in found.systems
                     if (rows := found.pick("latency", system["name"]))), key=lambda one: statistics.median(one[1]))
    drawn = {}
    if bars:
        drawn["throughput"] = bench_plots.throughput(
            bars, f"10 workers, jobs that do nothing; dark: persistence off, light: everysec. {where}")
    if series:
        drawn["backlog"] = bench_plots.backlogs(
            series, f"The first jobs of a backlog, 10 workers, persistence off. {where}")
    if delays:
        drawn["latency"] = bench_plots.latencies(
            delays, f"10 idle workers, one job at a time: median, middle half, 1st to 99th percentile. {where}")
    return drawn


def put_into_readme(found: Found) -> None:
    """Between the two marks in README.md: when and where, the table, and the other figures."""
    others = [(what, measured) for what, _, measured in reach(found)[2:] if measured != NONE]
    ours = "\n".join([head(found), table(found), grid(("besides", "measured"), *others)])
    README.write_text(re.sub(r"(<!-- bench -->\n).*?(<!-- /bench -->)", lambda match: match[1] + ours + match[2],
                             README.read_text(), flags=re.S))


if __name__ == "__main__":
    raw = json.loads((HERE / "results" / "bench.json").read_text())
    write(HERE / "results", raw)
    if "--readme" in sys.argv:
        put_into_readme(Found(raw))
