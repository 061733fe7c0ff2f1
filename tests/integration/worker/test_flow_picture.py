"""A flow is drawn as a tree."""

from __future__ import annotations

import re

import flow_jobs as jobs
import pytest

import rqjobs
from rqjobs import chain, config, group, s
from rqjobs.broker import keys
from rqjobs.flows import picture
from rqjobs.flows.picture import Fork, Gap


@pytest.fixture(autouse=True)
def modules(settings):
    config.use(modules=("flow_jobs", "sample_jobs"))


def add(number):
    return s(jobs.add, number)


def double():
    return s(jobs.double)


def shape(rows):
    """A step as the places of its jobs, a fork as a list of branches, a gap as a number of rows."""
    shown = []
    for row in rows:
        if isinstance(row, Fork):
            shown.append([*map(shape, row.branches), *(["more"] if row.left_out else [])])
        elif isinstance(row, Gap):
            shown.append(f"{row.rows} rows")
        else:
            first, last = row.jobs.start, row.jobs.stop - 1
            shown.append(f"{first}-{last}" if last > first else str(first))
    return shown


def drawn(flow, position=None):
    return shape(picture.read(flow.id, position).rows)


@pytest.mark.parametrize(
    "steps,expected",
    [
        ([add(1), double(), double()], ["0", "1", "2"]),
        ([group(add(n) for n in range(5)), s(jobs.total)], ["0-4", "5"]),
        (
            [add(1), group([chain(double(), double()), double(), double()]), s(jobs.total)],
            ["0", [["1", "2"], ["3-4"]], "5"],
        ),
        (
            [group([chain(add(1), double()), chain(add(2), double())]), s(jobs.total), double()],
            [[["0", "1"], ["2", "3"]], "4", "5"],
        ),
        (
            [
                group(
                    [
                        chain(add(1), group([chain(double(), double()), double()]), s(jobs.total)),
                        add(3),
                    ]
                ),
                s(jobs.total),
            ],
            [[["0", [["1", "2"], ["3"]], "4"], ["5"]], "6"],
        ),
    ],
    ids=["chain", "chord", "branches", "two chains", "branches in a branch"],
)
def test_each_job_is_drawn_behind_those_that_it_waits_for(redis, steps, expected):
    assert drawn(chain(*steps).enqueue()) == expected


def test_a_fork_of_many_branches_shows_the_own_and_the_failed_ones(redis):
    flow = chain(
        group(chain(add(n), double()) for n in range(100)), s(jobs.total), double()
    ).enqueue()
    redis.hset(keys.job(flow.job_ids[120]), "status", "failed")
    fork, *rest = picture.read(flow.id, 151).rows
    assert len(fork.branches) == picture.MAX_BRANCHES and fork.left_out == 88
    assert ["150", "151"] in [shape(one) for one in fork.branches]
    assert ["120", "121"] in [shape(one) for one in fork.branches]
    assert shape(rest) == ["200", "201"]


def test_a_long_chain_shows_both_ends_and_the_jobs_around_the_own_one(redis):
    flow = chain(add(0), *(double() for _ in range(299))).enqueue()
    rows = drawn(flow, 150)
    assert rows[9:12] == ["9", "130 rows", "140"] and rows[29:33] == [
        "158",
        "159",
        "130 rows",
        "290",
    ]
    assert len(drawn(flow)) == 21 and drawn(flow)[-1] == "299"


def test_a_chord_of_thousands_is_two_rows(redis):
    assert drawn(rqjobs.chord([add(1)] * 6000, s(jobs.total)).enqueue()) == ["0-5999", "6000"]


def test_jobs_whose_records_are_gone_are_drawn(redis):
    flow = chain(add(1), group([chain(double(), double()), double()]), s(jobs.total)).enqueue()
    redis.delete(*map(keys.job, flow.job_ids[:3]))
    assert drawn(flow) == ["0-2", "3", "4"]


def test_a_job_whose_record_is_gone_is_drawn_with_those_before_it(redis):
    """It began a branch of its own, and jobs of a chain were said to run at the same time."""
    flow = chain(add(1), group(double() for _ in range(4)), s(jobs.total), double()).enqueue()
    redis.hset(keys.flow(flow.id), flow.job_ids[2], "{}")
    redis.delete(*map(keys.job, (flow.job_ids[2], flow.job_ids[3])))
    assert drawn(flow) == ["0", "1-4", "5", "6"]
    redis.delete(keys.job(flow.job_ids[5]))
    rows = picture.read(flow.id).rows
    assert shape(rows) == ["0", "1-5", "6"]
    assert [row.is_parallel for row in rows] == [True, False, True]


def test_jobs_whose_parents_were_not_read_are_a_step_without_an_order(redis):
    """The end of a chain of thousands was "1,601 jobs at the same time"."""
    flow = chain(add(0), *(double() for _ in range(1999))).enqueue()
    *_, before, rest = picture.read(flow.id).rows
    assert shape([before, rest]) == ["399", "400-1999"]
    assert before.is_parallel and not rest.is_parallel


def test_forged_parents_end_in_some_tree(redis):
    flow = chain(add(1), *[double()] * 60).enqueue()
    for number, job_id in enumerate(flow.job_ids):
        parents = ["gone", job_id, *flow.job_ids[number // 2 : number : 7]]
        redis.hset(keys.job(job_id), "dependency_ids", str(parents).replace("'", '"'))
    assert all(str(n) in re.findall(r"\d+", str(drawn(flow))) for n in (0, 60))
    for odd in ("[", "3", '"x"', "{}", "[[]]", "[" * 5000):
        redis.hset(keys.job(flow.job_ids[5]), "dependency_ids", odd)
        drawn(flow)
