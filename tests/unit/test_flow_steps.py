"""Steps of flows: what is refused at once, before Redis is asked."""

from __future__ import annotations

import flow_jobs
import pytest

import rqjobs
from rqjobs import catalog, chain, chord, group, s, signatures
from rqjobs.passed_results import FlowPlace

add = flow_jobs.add
GROUP = group(add.s(1), add.s(2))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: chain(), ValueError, "no steps"),
        (lambda: group([]), ValueError, "no steps"),
        (lambda: chain(add), TypeError, r"rqjobs\.s\(add"),
        (lambda: chain(add.s(1), 2), TypeError, "not 2"),
        (lambda: group("abc"), TypeError, "not 'abc'"),
        (lambda: group(add.s(1), add), TypeError, r"rqjobs\.s\(add"),
        (lambda: chord([], add.s()), ValueError, "no steps"),
        (lambda: rqjobs.map(add, []), ValueError, "no steps"),
        (lambda: rqjobs.map(add, range(20_001)), ValueError, "at most 20,000"),
        (lambda: chain(GROUP, GROUP), ValueError, "cannot follow a group"),
        (lambda: chain(GROUP, chain(GROUP, add.s())), ValueError, "cannot follow a group"),
        (lambda: chain(chain(add.s(1), GROUP), GROUP), ValueError, "cannot follow a group"),
        (lambda: group(GROUP, add.s(1)), ValueError, "has one result"),
        (lambda: chain(add.s(1), on_failure="go"), ValueError, "'stop' or 'continue'"),
        (lambda: add.s(1).set(que="low"), TypeError, "no option que"),
        (lambda: add.s(1).set(unique="args"), ValueError, "unique cannot go with"),
        (lambda: add.s(1).set(depends_on="x"), ValueError, "the flow decides"),
        (lambda: add.s(1).set(job_id="x"), ValueError, "new ids"),
    ],
)
def test_a_wrong_step_is_an_error_at_once(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_a_signature_is_a_value_and_the_function_stays_plain():
    signature = s(flow_jobs.double, 1).set(queue="low").set(timeout=5)
    assert signature.options == {"queue": "low", "timeout": 5}
    assert add.s(1, more=2) == s(add, 1, more=2) and add(1, 2) == 3
    assert add.s(1) is not add.s(1).set(queue="low")


def test_each_option_of_a_signature_is_one_of_an_enqueue():
    assert {"job_timeout", "at_front"} == signatures.STEP_OPTIONS - catalog.JOB_OPTIONS


def test_the_place_of_a_job_is_read_as_it_is_written():
    place = FlowPlace("an-id", 3, 12, 1, "one", "results", "stop")
    assert FlowPlace.read(place.write()) == place and not place.is_end
    assert FlowPlace.read("") is None and FlowPlace.read("a b c d e f g") is None
