"""The benchmark counts right, knows its systems, and says what it could not measure. (`make bench-quick` runs it.)"""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Its folder to import from, and a file for the marks."""
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
    """Threads, and a process forked in the middle, leave one mark for each job, more than fit into one block."""
    from peers import work

    subprocess.run([sys.executable, "-c", MARKING], cwd=BENCHMARKS / "peers", check=True)
    marks = work.marks()
    assert len(marks) == 6001
    assert all(0 < begun <= ended for begun, ended in marks)
    later = sorted(marks)[2500][0]
    assert len(work.marks(later)) == sum(begun >= later for begun, _ in marks)


def test_overhead_is_what_is_left_of_the_workers_time(bench):
    """Two workers, naps of 10 ms; one needs 2 ms from job to job, the other 4."""
    from bench import overhead

    begins = sorted([*range(0, 1200, 12), *range(0, 1190, 14)])
    each, share = overhead(
        [(begin * 1_000_000, (begin + 10) * 1_000_000) for begin in begins], 2, 0.01
    )
    assert each == pytest.approx(2.9, abs=0.2) and share == pytest.approx(
        100 * (10 / 12 + 10 / 14) / 2, abs=1
    )


def test_every_system_tells_what_a_reader_must_know(bench):
    from bench_stage import systems

    found = systems()
    assert len({system.name for system in found}) == len(found) >= 14
    assert found[0].name == "rqjobs"
    assert {system.module for system in found} == {
        file.stem for file in (BENCHMARKS / "peers").glob("*_jobs.py")
    }
    assert {system.acks for system in found} == {"before", "after"}
    assert all(system.results and system.log and system.jobs for system in found)


def test_what_failed_is_not_measured(bench, tmp_path):
    """The report has no figure where there is none; and a part that is measured again replaces only itself."""
    import bench_report

    systems = [
        {
            "name": name,
            "module": "rq_jobs",
            "acks": "after",
            "results": "kept",
            "log": "off",
            "version": name,
            "found": "1",
            "jobs": 10,
        }
        for name in ("rqjobs", "slow", "broken")
    ]
    raw = {
        "machine": "4 cores (x)",
        "python": "3",
        "redis": "7",
        "date": "2026-01-01",
        "runs": 3,
        "seconds": 60,
        "systems": systems,
        "rows": [
            {
                "what": "drain",
                "system": "rqjobs",
                "unit": "jobs/s",
                "values": [1, 900, 800],
                "setting": "off",
                "jobs": 10,
            },
            {
                "what": "drain",
                "system": "slow",
                "unit": "jobs/s",
                "values": [100],
                "setting": "off",
                "jobs": 10,
            },
            {
                "what": "drain",
                "system": "broken",
                "failed": "it fell over\nsomewhere",
                "values": [],
            },
        ],
    }
    bench_report.write(tmp_path, raw)
    text = (tmp_path / "bench.md").read_text()
    assert "| rqjobs | 800 | not measured | 10 |" in text
    assert "| broken | not measured: it fell over |" in text
    assert "| times the fastest, off | above 1x | 8.0x (slow) |" in text
    assert "| enqueue one, round trips | 1 | not measured |" in text
    assert "800</text>" in (tmp_path / "throughput.svg").read_text()
    again = {**raw, "systems": systems[1:2], "rows": [{**raw["rows"][1], "values": [400]}]}
    bench_report.write(tmp_path, again, add=True)
    assert (
        "| times the fastest, off | above 1x | 2.0x (slow) |" in (tmp_path / "bench.md").read_text()
    )
