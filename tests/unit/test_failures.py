"""The group of a failure, by its exception or its traceback; and the option `on_failed`."""

from __future__ import annotations

import traceback

import pytest
import sample_jobs

import rqjobs
from rqjobs import Config, config
from rqjobs.policies import failures


class BadText(Exception):
    def __str__(self):
        raise RuntimeError


class Lines(Exception):
    pass


def raised(error):
    try:
        raise error
    except BaseException as caught:
        return caught


ERRORS = [
    (ValueError("no"), "ValueError", "no"),
    (KeyError(), "KeyError", ""),
    (Lines("one\n  two\nthree: 3"), "Lines", "one two three: 3"),
    (OSError(2, "gone"), "FileNotFoundError", "[Errno 2] gone"),
    (type("a\nb", (Exception,), {})("x"), "a b", "x"),
    (ValueError("a\udcff"), "ValueError", r"a\udcff"),
    (ValueError("x" * 1000), "ValueError", "x" * 300),
]


@pytest.mark.parametrize(("error", "name", "message"), ERRORS)
def test_group_of_an_exception(error, name, message):
    failure = failures.of_exception("m.f", error)
    assert failure == ("m.f", name, message)
    assert failure.group.count("\n") == 3 and failure.group.encode()


@pytest.mark.parametrize(
    ("error", "name", "message"),
    [one for one in ERRORS if "\n" not in one[1] and one[2] != "a b"][:4],
)
def test_group_of_a_traceback_is_that_of_the_exception(error, name, message):
    trace = "".join(traceback.format_exception(raised(error)))
    failure = failures.of_traceback("m.f", trace)
    if name != "a b":
        assert failure == ("m.f", name, message)


def test_group_of_an_exception_whose_code_raises():
    assert failures.of_exception("m.f", BadText()) == ("m.f", "BadText", "")


def test_group_of_a_chained_traceback_is_the_last():
    try:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error
    except ValueError:
        trace = traceback.format_exc()
    assert failures.of_traceback("m.f", trace)[1:] == ("ValueError", "second")


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("The process died 3 times within 72 hours", "process died"),
        ("The job ignored its time limit of 5 s, and was killed.", "time limit ignored"),
        ("Moved to FailedJobRegistry, due to AbandonedJobError, at now", "AbandonedJobError"),
        ("shop.Late: too late", "Late"),
        ("", "other"),
        ('  File "', "other"),
        ("something else happened", "other"),
    ],
)
def test_group_of_a_message(message, error):
    assert failures.of_traceback("m.f", message).error == error


@pytest.mark.parametrize("name", ["", "f", "m.f", "m:", ":f", "m:f.g", "m:f()", "m f:g", "1:2"])
def test_bad_on_failed_is_refused_at_import(name):
    if not name:
        return
    with pytest.raises(ValueError, match=r'is not "module:function"; for example "\w+:report'):
        rqjobs.job(on_failed=name)(lambda: None)


@pytest.mark.parametrize("name", [5, sample_jobs.ok, ["m:f"]])
def test_on_failed_that_is_no_text_is_refused_at_import(name):
    with pytest.raises(TypeError, match="is not a text; write the name of a job function"):
        rqjobs.job(on_failed=name)(lambda: None)


def test_limits_are_off_with_0():
    settings = Config.from_env({"RQJOBS_MAX_FAILED_JOBS": "0"})
    assert settings.max_failed_jobs == 0 and config.Config().max_failed_jobs == 100_000
