"""The pages of schedules and delayed jobs: views, forms, and malformed records in Redis."""

from __future__ import annotations

import html
import json
import re
from datetime import datetime, timedelta, timezone

import pytest
import sample_jobs
from browser_client import HOSTILE, OURS, counted_round_trips, harmless, run_all

import rqjobs
from rqjobs import catalog, cron, delayed, every, schedules
from rqjobs.jobs import Job
from rqjobs.web.forms.arguments import fill_in, read_arguments

NEW = {
    "function": "sample_jobs.add",
    "arg.a": "3",
    "arg.b": "4",
    "name": "sums",
    "queue": "low",
    "kind": "every",
    "interval": "90",
    "unit": "minutes",
    "missed": "once",
    "overlap": "on",
}
CRON = NEW | {
    "kind": "cron",
    "expression": "0 6 * * mon-fri",
    "tz": "Europe/Berlin",
    "interval": "",
}


def inputs(page):
    """The inputs of the schedule form, as a browser would send them."""
    form = page[page.index('id="rule"') :]
    sent = {}
    for tag in re.findall(r"<input[^>]*>", form):
        part = {name: html.unescape(value) for name, value in re.findall(r'(\w+)="([^"]*)"', tag)}
        if part.get("type") not in ("checkbox", "radio") or " checked" in tag:
            sent[part["name"]] = part.get("value", "")
    for name, body in re.findall(
        r'<textarea[^>]* name="([^"]+)".*?>\n(.*?)</textarea>', form, re.S
    ):
        sent[name] = html.unescape(body)
    for name, body in re.findall(r'<select[^>]*name="([^"]+)".*?>(.*?)</select>', form, re.S):
        chosen = re.search(r'<option(?: value="([^"]*)")? selected>([^<]*)', body) or re.search(
            r'<option(?: value="([^"]*)")?>([^<]*)', body
        )
        sent[name] = html.unescape(chosen[2] if chosen[1] is None else chosen[1])
    return sent


def declare(redis, name="from-code", rule=None):
    schedules.add(name, rule or every(hours=1), sample_jobs.ok)
    redis.hset(f"rqjobs:schedule:{name}", "source", "code")


# Views


def test_an_empty_list_shows_an_example(client):
    page = client.get("/schedules").text
    assert (
        "@every(minutes=5)" in page and "@cron(" in page and "No scheduler is running" not in page
    )
    assert (
        'value="sample_jobs.add"' in page
        and '<a href="/schedules" aria-current="page">' in client.get("/schedules").text
    )
    assert 'href="/schedules"' in client.get("/").text and 'href="/jobs"' in client.get("/").text


def test_all_schedules_are_listed(client, redis):
    schedules.add(
        "report",
        cron("0 6 * * mon-fri", tz="Europe/Berlin"),
        sample_jobs.add,
        3,
        b=4,
        queue="low",
    )
    schedules.add("rests", every(minutes=5), sample_jobs.ok)
    schedules.pause("rests")
    job = schedules.run_now("report")
    page = client.get("/schedules").text
    assert "at 06:00 on Monday through Friday (Europe/Berlin)" in page and "every 5 minutes" in page
    assert (
        "sample_jobs.add(3, b=4)" in page
        and "<td>low</td>" in page
        and 'class="badge paused"' in page
    )
    moment = schedules.get("report").next
    assert (
        f'<time datetime="{moment.isoformat(timespec="seconds")}">{moment:%Y-%m-%d %H:%M:%S} UTC</time>'
        in page
    ), "the script shows it in the viewer's zone"
    assert f'href="/jobs/{job.id}" title="queued, ' in page
    assert "No scheduler is running" in page
    redis.set("rqjobs:schedules:lock", "somebody")
    page = client.get("/schedules").text
    assert "No scheduler is running" not in page
    assert (
        client.get("/live/schedules").text.strip() in page
        and "<html" not in client.get("/live/schedules").text
    )


def test_schedules_are_shown_in_pages(client):
    for number in range(51):
        schedules.add(f"one-{number:02}", every(hours=1), sample_jobs.ok)
    first, second = client.get("/schedules").text, client.get("/schedules?page=2").text
    assert (
        "one-49" in first
        and "one-50" not in first
        and "1 of 2" in first
        and "/schedules?page=2" in first
    )
    assert "one-49" not in second and "one-50" in second
    for odd in ("0", "-1", "x", "99999999999999999999"):
        assert client.get(f"/schedules?page={odd}").status_code == 200


AT = NEW | {"kind": "at", "days": "weekdays", "clock": "06:30", "tz": "Europe/Berlin"}


@pytest.mark.parametrize(
    ("days", "clock", "expression"),
    [
        ("daily", "06:00", "0 6 * * *"),
        ("weekdays", "23:59", "59 23 * * mon-fri"),
        ("first", "0:05", "5 0 1 * *"),
        ("sun", "12:00", "0 12 * * sun"),
    ],
)
def test_days_and_a_time_make_a_rule_that_the_form_shows_again(client, days, clock, expression):
    client.post("/schedules", data=AT | {"days": days, "clock": clock})
    found = schedules.get("sums")
    assert (found.rule.expression, found.rule.tz) == (expression, "Europe/Berlin")
    sent = inputs(client.get("/schedules/sums").text)
    assert (sent["kind"], sent["days"]) == ("at", days) and sent["clock"].endswith(clock)
    client.post("/schedules/sums", data=sent)
    again = schedules.get("sums")
    assert (again.rule, again.next) == (found.rule, found.next), "saved without a change"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"clock": ""}, "Write a time of day"),
        ({"clock": "24:00"}, "Write a time of day"),
        ({"clock": "06:00:00\0"}, "Write a time of day"),
        ({"days": "never"}, "Choose the days"),
        ({"tz": "Mars/Base"}, "Mars/Base"),
        ({"kind": "sometimes"}, "Choose an interval, days, or a cron expression"),
    ],
)
def test_wrong_days_and_times_are_refused(client, change, error):
    reply = client.post("/schedules", data=AT | change)
    assert reply.status_code == 422 and error in html.unescape(reply.text)
    assert schedules.names() == []
    shown = client.get("/live/rule", query_string=AT | change)
    assert shown.status_code == 200 and error in html.unescape(shown.text)


def test_a_rule_in_other_words_is_shown_as_cron(client):
    for name, expression in (("a", "00 6 * * *"), ("b", "0 6 * * 1"), ("c", "0 6,7 * * *")):
        schedules.add(name, cron(expression), sample_jobs.ok)
        sent = inputs(client.get(f"/schedules/{name}").text)
        assert (sent["kind"], sent["expression"]) == ("cron", expression)


def test_schedules_are_searched_and_read_in_few_round_trips(client, redis):
    for number in range(60):
        schedules.add(f"one-{number:02}", every(hours=1), sample_jobs.ok, queue="low")
        schedules.run_now(f"one-{number:02}")
    schedules.add("nightly", cron("0 6 * * *"), sample_jobs.say, "hello")
    with counted_round_trips() as trips:
        page = client.get("/schedules").text
    assert trips.number <= 8 and page.count('class="outcomes"') > 40
    for text, name in (("NIGHT", "nightly"), ("jobs.say", "nightly"), ("one-07", "one-07")):
        page = client.get("/live/schedules", query_string={"q": text}).text
        assert re.findall(r'<tr data-key="([^"]+)"', page) == [name]
    assert "1 of 2" in client.get("/schedules?q=low").text
    assert "No schedule has" in client.get("/schedules?q=nowhere").text


def test_the_history_of_runs_is_paged(client, redis):
    schedules.add("often", every(hours=1), sample_jobs.ok)
    ids = [schedules.run_now("often").id for _ in range(30)][::-1]
    first = client.get("/schedules/often/runs").text
    assert [one for one in ids if f">{one}</bdi>" in first] == ids[:25] and "30 queued" in first
    schedules.run_now("often")  # it runs meanwhile
    older = html.unescape(re.search(r'href="([^"]+)">older', first)[1])
    page = client.get(older).text
    assert [one for one in ids if f">{one}</bdi>" in page] == ids[25:] and ">newest</a>" in page
    assert 'href="/schedules/often/runs">all' in client.get("/schedules/often").text
    for after in ("x", "\0", "9" * 999):
        path = "/schedules/often/runs"
        assert client.get(path, query_string={"after": after}).status_code == 200
    assert client.get("/schedules/nothing/runs").status_code == 404
    redis.delete("rqjobs:schedule:often:runs")
    redis.set("rqjobs:schedule:often:runs", "text")
    assert "has not run yet" in client.get("/schedules/often/runs").text


def test_the_page_of_a_schedule_shows_rule_and_runs(client, redis):
    schedules.add(
        "report", cron("30 2 * * *", tz="Asia/Kathmandu", jitter=60), sample_jobs.say, "hello"
    )
    first, second = schedules.run_now("report"), schedules.run_now("report")
    run_all(redis)
    redis.delete(first.key)
    page = client.get("/schedules/report").text
    assert (
        "at 02:30" in page
        and "sample_jobs.say(&#39;hello&#39;)" in page
        and "30 2 * * * (Asia/Kathmandu)" in page
    )
    for tick in schedules.get("report").upcoming(5):
        assert f"{tick:%a %Y-%m-%d %H:%M:%S %Z}" in page
        assert f'datetime="{tick.astimezone(timezone.utc).isoformat(timespec="seconds")}"' in page
    assert (
        f'href="/jobs/{second.id}"' in page
        and 'class="badge finished"' in page
        and "run now" in page
    )
    assert client.get("/live/schedules/report").text.strip() in page
    assert 'href="/schedules/report"' in client.get(f"/jobs/{second.id}").text
    for path in (
        "/schedules/nothing",
        "/live/schedules/nothing",
        "/schedules/%3Cb%3E",
        "/schedules/" + "x" * 81,
    ):
        assert client.get(path).status_code == 404


def test_a_declared_schedule_explains_where_to_change_it(client, redis):
    declare(redis)
    before = redis.hgetall("rqjobs:schedule:from-code")
    page = client.get("/schedules/from-code").text
    assert (
        "This schedule is declared in the code" in page
        and 'id="edit"' not in page
        and "/remove" not in page
    )
    assert (
        "in the code" in client.get("/schedules").text
        and "/remove" not in client.get("/schedules").text
    )
    for path in ("/schedules/from-code", "/schedules/from-code/remove"):
        assert client.post(path, data=NEW).status_code == 303
        assert (
            "Nothing was done: " in (page := client.get("/schedules").text)
            and "declared in the code" in page
        )
    assert redis.hgetall("rqjobs:schedule:from-code") == before
    redis.hset("rqjobs:schedule:from-code", "undeclared_since", "1")
    page = client.get("/schedules/from-code").text
    assert (
        "No running worker declares this schedule" in page and "/schedules/from-code/remove" in page
    )


# Actions


def test_pause_resume_run_remove(client, redis):
    schedules.add("report", every(hours=1), sample_jobs.add, 3, queue="low")
    assert client.post("/schedules/report/pause").location == "/schedules/report"
    assert schedules.get("report").state == "paused"
    assert (
        client.post("/schedules/report/resume", data={"back": "schedules"}).location == "/schedules"
    )
    assert schedules.get("report").state == "active"
    client.post("/schedules/report/run")
    (job_id,) = redis.lrange("rq:queue:low", 0, -1)
    assert "One job of this schedule is in the queue." in client.get("/schedules/report").text
    assert 'data-confirm="Remove the schedule report' in client.get("/schedules/report").text
    assert client.post("/schedules/report/remove").location == "/schedules"
    assert schedules.all() == [] and redis.lrange("rq:queue:low", 0, -1) == [job_id]
    for action in ("pause", "resume", "run", "remove"):
        assert client.post(f"/schedules/report/{action}").location == "/schedules"
        assert "Nothing was done: there is no schedule" in client.get("/schedules").text
    assert client.post("/schedules/report/explode").status_code == 404
    assert client.get("/schedules/report/pause").status_code == 405


def test_requests_of_other_sites_are_refused(app, client, redis):
    schedules.add("report", every(hours=1), sample_jobs.ok)
    job = rqjobs.enqueue_in(500, sample_jobs.ok)
    before = {key: redis.dump(key) for key in redis.scan_iter()}
    for path in (
        "/schedules",
        "/schedules/report",
        "/schedules/report/pause",
        "/schedules/report/run",
        "/schedules/report/remove",
        f"/jobs/{job.id}/reschedule",
    ):
        reply = client.post(path, data=NEW, headers={"Sec-Fetch-Site": "cross-site"})
        assert reply.status_code == 403, path
        assert app.test_client().post(path, data=NEW, headers=OURS).status_code == 401
    assert {key: redis.dump(key) for key in redis.scan_iter()} == before


def test_add_a_schedule(client, redis):
    page = client.get("/schedules?function=sample_jobs.add").text
    form = inputs(page)
    assert (form["name"], form["arg.b"], form["kind"], form["queue"]) == (
        "add",
        "1",
        "at",
        "default",
    )
    rule = {"kind": "every", "interval": "1.5", "unit": "hours"}
    reply = client.post("/schedules", data=form | rule | {"name": "sums", "arg.a": "3"})
    assert (reply.status_code, reply.location) == (303, "/schedules/sums")
    found = schedules.get("sums")
    assert (found.rule, found.function, found.args, found.queue) == (
        every(minutes=90),
        "sample_jobs.add",
        [3, 1],
        "default",
    )
    assert "The schedule sums is stored." in client.get(reply.location).text


def test_every_night_at_six_takes_three_clicks_without_javascript(client):
    def click(page, text):
        link = html.unescape(re.search(rf'href="([^"]+)">{text}<', page)[1])
        return client.get(link.partition("#")[0]).text

    page = click(client.get("/").text, "add one")
    page = click(page, "say")
    assert ">Choose<" in page and 'href="/schedules?function=' not in page
    form = inputs(page) | {"arg.text": "good night", "clock": "18:00", "tz": "Europe/Berlin"}
    assert client.post("/schedules", data=form).status_code == 303
    assert schedules.get("say").rule == cron("0 18 * * *", tz="Europe/Berlin")
    assert ">1 schedule<" in client.get("/").text


def test_every_input_reaches_the_rule(client):
    client.post(
        "/schedules",
        data=CRON
        | {
            "missed": "all",
            "overlap": "",
            "jitter": "2.5",
            "times": "7",
            "start": "2030-01-01T05:30:10",
            "start_offset": "330",
            "end": "2031-01-01T00:00",
            "end_offset": "-60",
        },
    )
    assert schedules.get("sums").rule == cron(
        "0 6 * * mon-fri",
        tz="Europe/Berlin",
        missed="all",
        overlap=False,
        jitter=2.5,
        times=7,
        start=datetime(2030, 1, 1, 0, 0, 10, tzinfo=timezone.utc),
        end=datetime(2031, 1, 1, 1, tzinfo=timezone.utc),
    )


def test_a_form_sent_twice_is_one_schedule(client):
    replies = [client.post("/schedules", data=NEW) for _ in range(2)]
    assert {reply.location for reply in replies} == {"/schedules/sums"}
    revision = schedules.get("sums").revision
    reply = client.post("/schedules", data=NEW | {"arg.a": "5"})
    assert reply.status_code == 422 and "there is a schedule &#39;sums&#39; already" in reply.text
    assert schedules.get("sums").revision == revision


@pytest.mark.parametrize(
    "wrong, where, message",
    [
        ({"name": ""}, "name", "Give it a name"),
        ({"name": "a b"}, "name", "cannot be the name of a schedule; use up to 80 letters"),
        ({"name": HOSTILE}, "name", "cannot be the name of a schedule"),
        ({"arg.a": "three"}, "arg.a", "is not a whole number"),
        ({"queue": "nowhere"}, "queue", "There is no such queue here."),
        ({"interval": "0.5", "unit": "seconds"}, "interval", "at least one"),
        ({"interval": ""}, "interval", "at least one"),
        ({"interval": "4000", "unit": "days"}, "interval", "from 0 to 3,650 days"),
        ({"kind": "sometimes"}, "kind", "Choose an interval, days, or a cron expression."),
        (
            {"kind": "cron", "expression": "0 6 * * mon-fry", "tz": ""},
            "expression",
            "field 5 (day of week)",
        ),
        ({"kind": "cron", "expression": "61 * * * *"}, "expression", "use 0 to 59"),
        ({"kind": "cron", "expression": ""}, "expression", "five fields"),
        ({"kind": "cron", "expression": "@sometimes"}, "expression", "@daily"),
        (
            {"kind": "cron", "expression": "@daily", "tz": "Europe/Berlim"},
            "tz",
            "did you mean &#39;Europe/Berlin&#39;?",
        ),
        (
            {"kind": "cron", "expression": "@daily", "tz": "../../etc/passwd"},
            "tz",
            "there is no time zone",
        ),
        ({"jitter": "-1"}, "jitter", "from 0 to 86,400 seconds"),
        ({"jitter": "nan"}, "jitter", "from 0 to 86,400 seconds"),
        ({"jitter": "7000"}, "jitter", "less than 5400"),
        ({"times": "0"}, "times", "from 1 to"),
        ({"missed": "maybe"}, "missed", "use one of"),
        ({"start": "soon"}, "start", "Give a date and a time"),
        ({"start": "0001-01-01T00:00", "start_offset": "840"}, "start", "Give a date and a time"),
        ({"end": "9999-12-31T23:59", "end_offset": "-840"}, "end", "Give a date and a time"),
        (
            {"start": "2030-01-02T00:00", "end": "2030-01-01T00:00"},
            "end",
            "must not be before start",
        ),
    ],
)
def test_errors_are_shown_at_their_input_and_inputs_are_kept(client, redis, wrong, where, message):
    reply = client.post("/schedules", data=NEW | wrong)
    assert reply.status_code == 422
    harmless(reply.text)
    (error,) = re.findall(f'<p class="error" id="{where}-error">([^<]*)</p>', reply.text)
    assert message in error
    kept = inputs(reply.text)
    assert {
        name: kept[name]
        for name in NEW | wrong
        if name in kept and name not in ("queue", "kind", "missed", "start_offset", "end_offset")
    }.items() <= (NEW | wrong).items()
    assert schedules.all() == []


def test_the_form_previews_the_next_ticks(client):
    page = client.get("/live/rule", query_string=CRON | {"tz": "Asia/Kathmandu"}).text
    assert (
        "at 06:00 on Monday through Friday (Asia/Kathmandu)" in page
        and page.count(" 00:15:00 UTC</time>") == 3
    )
    for wrong, message in (
        (CRON | {"expression": "0 6 * * mon-fry"}, "field 5"),
        ({}, "Choose an interval, days, or a cron expression."),
        (NEW | {"start": "9998-12-31T23:00"}, ""),
        (NEW | {"end": "2001-01-01T00:00"}, "never"),
        (dict.fromkeys(CRON, HOSTILE) | {"kind": "cron"}, ""),
    ):
        reply = client.get("/live/rule", query_string=wrong)
        assert reply.status_code == 200 and message in reply.text
        harmless(reply.text)


def test_a_refusal_of_enqueue_is_shown_on_the_form(client):
    rqjobs.config.use(max_payload_bytes=1024)
    reply = client.post(
        "/schedules", data=NEW | {"function": "sample_jobs.say", "arg.text": "x" * 1020}
    )
    assert reply.status_code == 422 and "RQJOBS_MAX_PAYLOAD_BYTES" in reply.text
    for name in ("os.system", "sample_jobs._hidden", HOSTILE):
        reply = client.post("/schedules", data=NEW | {"function": name})
        assert reply.status_code == 422 and "There is no such job function" in reply.text
    assert schedules.all() == []


# The edit form


@pytest.mark.parametrize(
    "rule",
    [
        every(seconds=7),
        every(minutes=90),
        every(days=14, times=3, overlap=False, missed="skip"),
        every(hours=1, start=datetime(2030, 1, 1, 5, 6, 7, 89, tzinfo=timezone.utc), jitter=0.25),
        cron(
            "0 6 * * mon-fri",
            tz="Europe/Berlin",
            missed="all",
            end=datetime(2040, 1, 1, tzinfo=timezone.utc),
        ),
    ],
)
def test_saving_an_unchanged_form_changes_nothing(client, redis, rule):
    schedules.add(
        "one", rule, sample_jobs.add, 3, b=4, queue="low", job_timeout=77, description="mine"
    )
    before = schedules.get("one")
    job = redis.hgetall("rqjobs:schedule:one:job")
    reply = client.post("/schedules/one", data=inputs(client.get("/schedules/one").text))
    assert reply.status_code == 303, reply.text
    after = schedules.get("one")
    assert (after.rule, after.queue, after.args, after.kwargs) == (
        before.rule,
        "low",
        [3],
        {"b": 4},
    )
    assert redis.hgetall("rqjobs:schedule:one:job") == job


def test_edit_a_schedule(client, redis):
    schedules.add("one", every(hours=1), sample_jobs.add, 3, queue="low", job_timeout=77)
    job = schedules.run_now("one")
    form = inputs(client.get("/schedules/one").text)
    assert (form["arg.a"], form["arg.b"], form["interval"], form["unit"]) == (
        "3",
        "1",
        "1",
        "hours",
    )
    client.post(
        "/schedules/one",
        data=form
        | {"arg.b": "5", "kind": "cron", "expression": "@daily", "tz": "UTC", "queue": "high"},
    )
    found = schedules.get("one")
    assert (found.rule, found.args, found.queue) == (cron("@daily"), [3, 5], "high")
    assert [run.job_id for run in schedules.runs("one")] == [job.id] and found.fields[
        b"timeout"
    ] == b"77"
    assert "The schedule is changed." in client.get("/schedules/one").text
    page = client.get("/schedules/one?function=sample_jobs.say").text
    client.post("/schedules/one", data=inputs(page) | {"arg.text": "hello"})
    found = schedules.get("one")
    assert (found.function, found.args, found.queue, found.rule) == (
        "sample_jobs.say",
        ["hello"],
        "high",
        cron("@daily"),
    )


def test_errors_of_an_edit(client):
    schedules.add("one", every(hours=1), sample_jobs.add, 3)
    before = schedules.get("one")
    form = inputs(client.get("/schedules/one").text)
    for wrong, message in (
        ({"kind": "cron", "expression": "99 * * * *"}, "use 0 to 59"),
        ({"arg.a": "x"}, "not a whole number"),
        ({"function": "os.system"}, "no such job function"),
        ({"queue": "nowhere"}, "no such queue"),
    ):
        reply = client.post("/schedules/one", data=form | wrong)
        assert reply.status_code == 422 and message in reply.text and schedules.get("one") == before
    assert "There is no such job function" in client.get("/schedules/one?function=os.system").text
    assert client.post("/schedules/nothing", data=form).status_code == 404


def test_a_concurrent_change_is_not_overwritten_unseen(client):
    schedules.add("one", every(hours=1), sample_jobs.add, 3)
    form = inputs(client.get("/schedules/one").text) | {"arg.a": "9"}
    schedules.edit("one", rule=every(hours=2))
    reply = client.post("/schedules/one", data=form)
    assert reply.status_code == 422 and "The schedule has changed since" in reply.text
    assert schedules.get("one").args == [3]
    client.post("/schedules/one", data=inputs(reply.text))
    assert schedules.get("one").args == [9, 1], "seen, and written over it"


@pytest.mark.parametrize(
    "function, args, kwargs",
    [
        (sample_jobs.ok, ["3"], {}),
        (sample_jobs.ok, [3], {}),
        (sample_jobs.ok, [{"a": [1]}], {}),
        (sample_jobs.ok, [[1, 2]], {}),
        (sample_jobs.ok, ["one\ntwo"], {}),
        (sample_jobs.say, ["x" * 300], {}),
        (sample_jobs.add, [-1], {}),
        (sample_jobs.hang, ["gate"], {"seconds": 0.1}),
        (sample_jobs.ok, ["true"], {}),
        (sample_jobs.ok, [True], {}),
    ],
)
def test_arguments_survive_the_form(function, args, kwargs):
    shown = fill_in(function, args, kwargs)
    again, more, errors = read_arguments(function, shown)
    assert not errors and json.dumps([*again, more]).startswith(json.dumps(args)[:-1])


@pytest.mark.parametrize(
    "function, args",
    [
        (sample_jobs.ok, [datetime(2030, 1, 1)]),
        (sample_jobs.ok, [(1, 2)]),
        (sample_jobs.add, ["no number"]),
        (sample_jobs.add, [1, 2, 3]),
        (sample_jobs.say, [""]),
        (sample_jobs.add, [True]),
        (sample_jobs.ok, [float("inf")]),
    ],
)
def test_arguments_that_the_form_cannot_show_have_no_inputs(client, redis, function, args):
    assert fill_in(function, args, {}) is None


def test_an_edit_keeps_arguments_that_the_form_cannot_show(client, redis, monkeypatch):
    moment = datetime(2030, 1, 1, tzinfo=timezone.utc)
    schedules.add("one", every(hours=1), sample_jobs.ok, moment)
    page = client.get("/schedules/one").text
    assert "so they stay as they are" in page and 'name="arg.value"' not in page
    client.post("/schedules/one", data=inputs(page) | {"interval": "3"})
    assert schedules.get("one").rule == every(hours=3) and schedules.get("one").args == [moment]
    monkeypatch.delitem(catalog.current().functions, "sample_jobs.ok")
    page = client.get("/schedules/one").text
    assert "is not a job function here" in page and "The function is not in the catalog" in page
    client.post("/schedules/one", data=inputs(page) | {"interval": "4"})
    assert schedules.get("one").rule == every(hours=4) and schedules.get("one").args == [moment]


# Malformed records in Redis


ODD = [
    b"",
    b"\xff\xfe",
    b"-1",
    b"1e300",
    b"nan",
    b"inf",
    b"9" * 400,
    b"[" * 5000,
    b'{"expression": 3}',
    b'{"seconds": 1e9}',
    b'{"seconds": 5, "jitter": NaN}',
    b'{"expression": "* * * * *", "tz": ["x"]}',
    b'{"seconds": 5, "missed": {}}',
    b'{"seconds": 5, "start": "0001-01-01T00:00:00"}',
    b'{"seconds": 5, "end": 7}',
    HOSTILE.encode(),
]


def look(client, name):
    for path in ("/schedules", f"/schedules/{name}", "/live/schedules", f"/live/schedules/{name}"):
        reply = client.get(path)
        assert reply.status_code == 200, (path, reply.status)
        harmless(reply.text)
        assert "good" in reply.text or "/schedules/" in path, "one hides no other"


@pytest.mark.parametrize(
    "field",
    [
        "rule",
        "function",
        "queue",
        "source",
        "state",
        "revision",
        "next",
        "last",
        "made",
        "left",
        "missed",
        "overlapped",
        "created",
        "changed",
        "digest",
    ],
)
def test_malformed_fields_break_no_page(client, redis, field):
    schedules.add("good", every(hours=1), sample_jobs.ok)
    schedules.add("odd", every(hours=1), sample_jobs.add, 3)
    for value in ODD:
        redis.hset("rqjobs:schedule:odd", field, value)
        look(client, "odd")
        client.post("/schedules/odd", data=NEW | {"revision": "1"})
        client.post("/schedules/odd/pause")
        assert client.post("/schedules/odd/resume").status_code == 303
    redis.hdel("rqjobs:schedule:odd", field)
    look(client, "odd")


@pytest.mark.parametrize("key", ["job", "runs", "outcomes", ""])
def test_keys_of_another_type_break_no_page(client, redis, key):
    schedules.add("good", every(hours=1), sample_jobs.ok)
    schedules.add("odd", every(hours=1), sample_jobs.say, "x")
    job = schedules.run_now("odd")
    key = f"rqjobs:schedule:odd:{key}".rstrip(":")
    for value in ODD:
        if key.endswith(":job"):
            redis.hset(
                key,
                mapping={
                    "data": value,
                    "description": value,
                    "func_name": value,
                    "created_at": value,
                },
            )
        elif key.endswith(":outcomes"):
            redis.hset(key, job.id, value)
            redis.hset(key, job.id, b"finished " + value)
            redis.delete(job.key)
        else:
            redis.delete(key)
            redis.rpush(key, value, b"now 1 " + value, value + b" 1 x", b"now " + value + b" x")
        look(client, "odd")
    redis.delete(key)
    look(client, "odd") if key != "rqjobs:schedule:odd" else client.get("/schedules")
    redis.set(key, HOSTILE)
    look(client, "odd")
    assert client.post("/schedules/odd/remove").status_code == 303


def test_hostile_schedules_are_escaped(client, redis):
    schedules.add("good", every(hours=1), sample_jobs.ok)
    schedules.add("evil", every(hours=1), sample_jobs.say, HOSTILE, description=HOSTILE)
    job = schedules.run_now("evil")
    redis.hset(
        "rqjobs:schedule:evil",
        mapping={"function": HOSTILE, "queue": HOSTILE, "source": HOSTILE, "state": HOSTILE},
    )
    redis.hset(job.key, mapping={"status": HOSTILE, "rqjobs_schedule": HOSTILE})
    redis.lpush("rqjobs:schedule:evil:runs", f"now 1 {HOSTILE.replace(' ', '-')}")
    for name in (HOSTILE, "", "a/b", "../x", "é", "x" * 10_000, b"\xff"):
        redis.zadd("rqjobs:schedules", {name: 1})
    look(client, "evil")
    assert "unreadable" in client.get("/schedules").text
    harmless(client.get("/schedules", query_string={"function": HOSTILE}).text)
    harmless(client.get("/schedules/good", query_string={"function": HOSTILE}).text)
    harmless(
        client.post(
            "/schedules", data=dict.fromkeys(NEW, HOSTILE) | {"function": "sample_jobs.add"}
        ).text
    )
    harmless(client.post("/schedules/good", data=dict.fromkeys(NEW, HOSTILE)).text)
    page = client.get(f"/jobs/{job.id}").text
    harmless(page)


# Delayed jobs


def test_delayed_jobs_are_in_the_list_of_jobs(client, redis):
    reply = client.get("/delayed?queue=low")
    assert (reply.status_code, reply.location) == (302, "/jobs?state=scheduled&queue=low")
    late, soon = (
        rqjobs.enqueue_in(500, sample_jobs.say, "late"),
        rqjobs.enqueue_in(50, sample_jobs.say, "soon"),
    )
    low = rqjobs.queue("low").enqueue_in(timedelta(seconds=5), sample_jobs.say, HOSTILE)
    page = client.get("/delayed", follow_redirects=True).text
    assert re.findall(r'formaction="/jobs/([^"]+)/cancel"', page) == [low.id, soon.id, late.id]
    assert delayed.jobs()[1].due.isoformat(timespec="seconds") in page
    harmless(page)
    harmless(client.get("/delayed", query_string={"queue": HOSTILE}, follow_redirects=True).text)


def test_cancel_and_reschedule(client, redis):
    job = rqjobs.enqueue_in(500, sample_jobs.ok)
    page = client.get(f"/jobs/{job.id}").text
    assert 'id="reschedule" data-while="scheduled">' in page
    now = redis.time()[0]
    path = f"/jobs/{job.id}/reschedule"
    assert (
        client.post(path, data={"when": "in", "delay": "2", "unit": "hours"}).location
        == f"/jobs/{job.id}"
    )
    assert redis.zscore("rq:scheduled:default", job.id) == pytest.approx(now + 7200, abs=60)
    assert "The job is due at " in client.get(f"/jobs/{job.id}").text
    client.post(path, data={"when": "at", "at": "2031-01-01T05:30", "offset": "330"})
    assert (
        redis.zscore("rq:scheduled:default", job.id)
        == datetime(2031, 1, 1, tzinfo=timezone.utc).timestamp()
    )
    assert client.post(path, data={"when": "now", "back": "delayed"}).location == "/delayed"
    assert redis.zscore("rq:scheduled:default", job.id) == pytest.approx(now, abs=60)
    assert client.post(f"/jobs/{job.id}/cancel", data={"back": "delayed"}).location == "/delayed"
    assert redis.zcard("rq:scheduled:default") == 0 and job.get_status() == "canceled"
    assert redis.zscore("rq:canceled:default", job.id) is not None
    client.post(path, data={"when": "in", "delay": "2"})
    assert "is not delayed" in client.get(f"/jobs/{job.id}").text
    assert (
        client.post("/jobs/nothing/reschedule", data={"when": "now", "back": "delayed"}).status_code
        == 303
    )
    assert "Nothing was done: No such job" in client.get("/delayed", follow_redirects=True).text


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"when": "in", "delay": ""}, "Give the delay."),
        ({"when": "in", "delay": "-1"}, "from 0 to"),
        ({"when": "at", "at": "soon"}, "Give a date and a time"),
        ({"when": "at", "at": "2001-01-01T00:00"}, "This time is in the past."),
        ({"when": HOSTILE}, "Choose when to run the job."),
    ],
)
def test_errors_of_a_reschedule(client, redis, wrong, message):
    job = rqjobs.enqueue_in(500, sample_jobs.ok)
    due = redis.zscore("rq:scheduled:default", job.id)
    reply = client.post(f"/jobs/{job.id}/reschedule", data=wrong)
    assert (
        reply.status_code == 422
        and message in reply.text
        and "The time was not changed" in reply.text
    )
    harmless(reply.text)
    assert redis.zscore("rq:scheduled:default", job.id) == due


def test_a_delayed_job_that_cannot_be_read_can_be_canceled(client, redis):
    job = rqjobs.enqueue_in(500, sample_jobs.ok)
    redis.hset(job.key, mapping={"created_at": HOSTILE, "description": HOSTILE, "data": b"\xff"})
    redis.zadd("rq:scheduled:default", {"gone": 5, HOSTILE: 6, "endless": float("inf")})
    redis.set("rq:job:endless", "no hash")
    page = client.get("/delayed", follow_redirects=True).text
    harmless(page)
    assert "gone" in page
    for job_id in ("gone", "endless"):
        assert client.post(f"/jobs/{job_id}/cancel", data={"back": "delayed"}).status_code in (
            303,
            404,
        )
        assert client.post(f"/jobs/{job_id}/reschedule", data={"when": "now"}).status_code in (
            303,
            404,
        )
    assert client.post(f"/jobs/{job.id}/cancel", data={"back": "delayed"}).status_code == 303
    assert "The job is canceled" in client.get("/delayed", follow_redirects=True).text
    assert (
        redis.zscore("rq:scheduled:default", job.id) is None
        and redis.hget(job.key, "status") == b"canceled"
    )


def test_only_a_delayed_job_has_the_reschedule_form(client, redis):
    job = rqjobs.enqueue(sample_jobs.ok)
    assert 'data-while="scheduled" hidden>' in client.get(f"/jobs/{job.id}").text
    run_all(redis)
    assert "data-while" not in client.get(f"/jobs/{job.id}").text
    assert Job.fetch(job.id, connection=redis).get_status() == "finished"
