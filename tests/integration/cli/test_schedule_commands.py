"""`rqjobs schedules` and `rqjobs delayed`."""

from __future__ import annotations

import pytest
import sample_jobs
from click.testing import CliRunner

import rqjobs
from rqjobs import cli, every, schedules
from rqjobs.schedules.describe import describe


@pytest.fixture
def run(redis):
    """Run `rqjobs …` in this process; returns (exit code, output)."""

    def go(*arguments):
        result = CliRunner().invoke(cli.main, arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), (
            result.exception
        )
        return result.exit_code, result.output

    return go


def test_add_list_show_and_remove(run):
    assert "no schedules; declare one" in run("schedules")[1]
    code, output = run(
        "schedules",
        "add",
        "six",
        "sample_jobs.note",
        "Ada",
        "number=3",
        "--cron",
        "0 6 * * mon-fri",
        "--tz",
        "Europe/Berlin",
        "--timeout",
        "1m30s",
        "--no-overlap",
    )
    assert code == 0 and "at 06:00 on Monday through Friday (Europe/Berlin); only when" in output
    found = schedules.get("six")
    assert (found.args, found.kwargs, found.fields[b"timeout"]) == (["Ada"], {"number": 3}, b"90")
    code, output = run("schedules")
    assert code == 0 and "six" in output and "sample_jobs.note('Ada', number=3)" in output
    run("schedules", "run", "six")
    code, output = run("schedules", "show", "six")
    assert (
        code == 0 and output.count("next  ") == 5 and "06:00:00 CE" in output and "queued" in output
    )
    assert run("schedules", "remove", "six") == (0, "six: removed\n")
    assert schedules.all() == []


def test_add_refuses_an_existing_name_or_replaces_it(run):
    assert run("schedules", "add", "one", "sample_jobs.note", "--every", "1h")[0] == 0
    code, output = run("schedules", "add", "one", "sample_jobs.note", "--every", "2h")
    assert (
        code == 1
        and "there is a schedule 'one' already" in output
        and schedules.get("one").rule.seconds == 3600
    )
    assert run("schedules", "add", "one", "sample_jobs.note", "--every", "2h", "--replace")[0] == 0
    assert schedules.get("one").rule.seconds == 7200


def test_pause_resume_and_run_report_each_name(run):
    schedules.add("one", every(hours=1), sample_jobs.note)
    assert (
        run("schedules", "pause", "one") == (0, "one: paused\n")
        and schedules.get("one").state == "paused"
    )
    assert (
        run("schedules", "resume", "one") == (0, "one: active\n")
        and schedules.get("one").state == "active"
    )
    code, output = run("schedules", "run", "nobody", "one")
    assert code == 1 and "there is no schedule 'nobody'" in output
    assert rqjobs.queue("default").job_ids[0] in output


def test_edit_changes_only_the_given_options(run):
    schedules.add("one", every(hours=1, overlap=False), sample_jobs.note, "a")
    code, output = run("schedules", "edit", "one", "--every", "90m")
    assert code == 0 and "every 90 minutes; only when" in output
    assert schedules.get("one").args == ["a"]
    run("schedules", "edit", "one", "b", "--cron", "@daily", "--tz", "Asia/Tokyo")
    found = schedules.get("one")
    assert found.args == ["b"] and describe(found.rule).startswith(
        "at 00:00 every day (Asia/Tokyo); only when"
    )
    run("schedules", "edit", "one", "--tz", "UTC", "--overlap")
    assert describe(schedules.get("one").rule) == "at 00:00 every day (UTC)"
    revision = schedules.get("one").revision
    assert run("schedules", "edit", "nobody")[0] == 1
    run("schedules", "edit", "one", "--queue", "low")
    found = schedules.get("one")
    assert (found.queue, found.args, found.revision) == ("low", ["b"], revision + 1)


def test_edit_of_one_option_keeps_the_interval(run):
    schedules.add("one", every(minutes=5), sample_jobs.note)
    for change in (["--no-overlap"], ["--missed", "all"], ["--jitter", "5s"], ["--times", "5"]):
        assert run("schedules", "edit", "one", *change)[0] == 0
    assert schedules.get("one").rule == every(
        minutes=5, overlap=False, missed="all", jitter=5, times=5
    )
    code, output = run("schedules", "edit", "one", "--every", "0s")
    assert (
        code == 1
        and "takes a whole number of seconds" in output
        and schedules.get("one").rule.seconds == 300
    )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--every", "99999999999w"], 1, "takes a whole number of seconds"),
        (["--cron", "0 25 * * *"], 1, "field 2 (hour): '25' is wrong"),
        (["--cron", "@daily", "--tz", "Europe/Berln"], 1, "did you mean 'Europe/Berlin'"),
        (["--every", "5"], 2, "write it like 90s, 5m"),
        ([], 2, "give a rule"),
        (["--every", "5m", "--cron", "@daily"], 2, "one rule"),
        (["--every", "5m", "surplus", "1", "2"], 1, "too many"),
    ],
)
def test_a_wrong_option_prints_one_line(run, arguments, code, words):
    exited, output = run("schedules", "add", "x", "sample_jobs.note", *arguments)
    assert exited == code and words in output and "Traceback" not in output
    assert schedules.all() == []


def test_arguments_are_converted_to_the_annotations(run):
    given = '{"customer": {"name": "A"}, "points": [{"x": 1}], "colors": {"a": "red"}}'
    assert run("schedules", "add", "one", "sample_jobs.order", given, "--every", "5m")[0] == 0
    order = sample_jobs.Order(
        sample_jobs.Outer.Inner("A"), [sample_jobs.Point(1)], {"a": sample_jobs.Color.RED}
    )
    assert schedules.get("one").args == [order]
    code, output = run("schedules", "edit", "one", given.replace("red", "green"))
    assert code == 1 and "order.colors.a: 'green' is not one of RED, BLUE" in output
    assert run("schedules", "edit", "one", given, 'sizes=["LARGE"]')[0] == 0
    assert schedules.get("one").kwargs == {"sizes": [sample_jobs.Size.LARGE]}
    run("schedules", "add", "two", "sample_jobs.say", "3", "--every", "5m")
    assert schedules.get("two").args == ["3"], "a text, as the annotation says"


def test_reschedule_refuses_a_time_after_the_year_9999(run):
    job = rqjobs.enqueue_in(60, sample_jobs.note)
    code, output = run("delayed", "reschedule", job.id, "999999999999999w")
    assert code == 1 and "is not a time for a job" in output and "Traceback" not in output


def test_delayed_jobs_are_listed_rescheduled_and_canceled(run, redis):
    first, second = (
        rqjobs.enqueue_in(60, sample_jobs.note, "a"),
        rqjobs.enqueue_in(90, sample_jobs.note, "b\x1b[2J"),
    )
    code, output = run("delayed")
    assert code == 0 and output.index(first.id) < output.index(second.id) and "2 delayed" in output
    assert "\x1b" not in output
    assert run("delayed", "reschedule", first.id, "1h30m")[0] == 0
    assert redis.zscore("rq:scheduled:default", first.id) > redis.time()[0] + 5000
    assert "2030-01-31 06:00:00" in run("delayed", "reschedule", first.id, "2030-01-31T06:00")[1]
    assert run("delayed", "reschedule", second.id, "now")[0] == 0
    assert redis.zscore("rq:scheduled:default", second.id) <= redis.time()[0] + 1
    assert run("delayed", "cancel", first.id) == (0, f"{first.id}: canceled\n")
    code, output = run("delayed", "cancel", first.id, "nobody")
    assert code == 1 and "is not delayed" in output and "No such job" in output
    assert run("delayed", "reschedule", second.id, "tomorrow")[0] == 2
