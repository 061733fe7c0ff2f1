"""The benchmark counts every job, describes every system, and reports what was not measured.

`make bench-quick` runs the benchmark itself.
"""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Make the benchmark's modules importable, and give them an empty file of marks."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("BENCH_MARKS", str(tmp_path / "marks"))
    (tmp_path / "marks").touch()
    yield
    for name in [
        name for name in sys.modules if name == "peers" or name.startswith(("peers.", "bench_"))
    ]:
        del sys.modules[name]


MARKING = """
import os, threading, work
work.noop()
child = os.fork()
for _ in range(1000):
    work.noop()
if not child:
    os._exit(0)
threads = [threading.Thread(target=lambda: [work.noop() for _ in range(1000)]) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert os.waitpid(child, 0)[1] == 0
"""


def test_every_job_is_counted(bench):
    """Threads and a forked process leave one mark per job, more than fit into one block."""
    from peers import work

    subprocess.run([sys.executable, "-c", MARKING], cwd=BENCHMARKS / "peers", check=True)
    marks = work.marks()
    assert len(marks) == 6001
    assert all(0 < begun <= ended for begun, ended in marks)
    later = sorted(marks)[2500][0]
    assert len(work.marks(later)) == sum(begun >= later for begun, _ in marks)


def test_overhead_is_worker_time_outside_of_jobs(bench):
    """Two workers run jobs of 10 ms; one needs 2 ms between two jobs, the other 4 ms."""
    from bench import overhead

    starts = sorted([*range(0, 1200, 12), *range(0, 1190, 14)])
    milliseconds, share = overhead(
        [(start * 1_000_000, (start + 10) * 1_000_000) for start in starts], 2, 0.01
    )
    assert milliseconds == pytest.approx(2.9, abs=0.2)
    assert share == pytest.approx(100 * (10 / 12 + 10 / 14) / 2, abs=1)


def test_every_system_has_the_facts_that_the_report_needs(bench):
    from bench_environment import systems

    found = systems()
    assert len({system.name for system in found}) == len(found) >= 14
    assert found[0].name == "rqjobs"
    assert {system.module for system in found} == {
        file.stem for file in (BENCHMARKS / "peers").glob("*_jobs.py")
    }
    assert {system.acks for system in found} == {"before", "after"}
    assert all(system.results and system.log and system.jobs for system in found)


def system_facts(name):
    return {
        "name": name,
        "module": "rq_jobs",
        "acks": "after",
        "results": "kept",
        "log": "off",
        "version": name,
        "found": "1",
        "jobs": 10,
    }


def drain_row(system, values):
    return {
        "what": "drain",
        "system": system,
        "unit": "jobs/s",
        "values": values,
        "setting": "off",
        "jobs": 10,
    }


def test_the_report_has_no_figure_for_a_failed_measurement(bench, tmp_path):
    """Rows that are measured again replace the old rows; the other rows stay."""
    import bench_report

    systems = [system_facts(name) for name in ("rqjobs", "slow", "broken")]
    failure = {
        "what": "drain",
        "system": "broken",
        "failed": "it fell over\nsomewhere",
        "values": [],
    }
    raw = {
        "machine": "4 cores (x)",
        "python": "3",
        "redis": "7",
        "date": "2026-01-01",
        "runs": 3,
        "seconds": 60,
        "systems": systems,
        "rows": [drain_row("rqjobs", [1, 900, 800]), drain_row("slow", [100]), failure],
    }
    fastest = "| throughput relative to the fastest system, persistence off | above 1x |"
    bench_report.write(tmp_path, raw)
    text = (tmp_path / "bench.md").read_text()
    assert "| rqjobs | 800 | not measured | 10 |" in text
    assert "| broken | not measured: it fell over |" in text
    assert f"{fastest} 8.0x (slow) |" in text
    assert "| enqueue, round trips | 1 | not measured |" in text
    assert "800</text>" in (tmp_path / "throughput.svg").read_text()
    again = {**raw, "systems": systems[1:2], "rows": [drain_row("slow", [400])]}
    bench_report.write(tmp_path, again, add=True)
    assert f"{fastest} 2.0x (slow) |" in (tmp_path / "bench.md").read_text()
