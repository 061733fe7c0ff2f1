"""Each page takes few round trips and reads little, as `make bench-web` measures it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rqjobs import config

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    """The benchmark's module."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import bench_web

    yield bench_web
    del sys.modules["bench_web"]


def test_every_page_takes_at_most_eight_round_trips_and_a_megabyte(bench, redis):
    config.use(**bench.SETTINGS)
    names = bench.fill(redis, bench.Sizes(queued=500, failed=200, finished=100, workers=20))
    app, browser = bench.logged_in()
    pages = bench.paths(app, names)
    assert {"/", "/live", "/live/workers", "/failed", "/failed/group1"} <= set(pages)
    costs = [bench.measure(browser, redis, path, repeats=1) for path in pages]
    assert [cost for cost in costs if cost.status >= 500] == []
    too_many = [cost for cost in costs if cost.round_trips > bench.limit_trips(cost.path)]
    too_large = [cost for cost in costs if cost.bytes_read > bench.LIMIT_BYTES]
    assert not too_many and not too_large
