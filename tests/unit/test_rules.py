"""Rules and their ticks, compared with croniter as the oracle over ten years."""

from __future__ import annotations

import functools
import random
import re
from datetime import datetime, timedelta, timezone
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from cronsim import CronSim
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rqjobs import ScheduleError, cron, every
from rqjobs.schedules import ticker
from rqjobs.schedules.cron import parse_expression
from rqjobs.schedules.describe import describe, describe_missed
from rqjobs.schedules.rules import MISSED_MAX_TICKS, Rule
from rqjobs.times import MAX_TIMESTAMP

BERLIN = ZoneInfo("Europe/Berlin")
LINES = [
    "*/5 * * * *",
    "0 6 * * mon-fri",
    "30 2 * * *",
    "17 * * * *",
    "0 0 1 * *",
    "0 0 29 2 *",
    "0 0 1,15 * mon",
    "*/20 9-17 * * 1-5",
    "5 4 * * sun",
    "0 0 31 * *",
    "0 0 */2 * *",
    "15 3 1 jan,jul *",
    "0 */6 * * *",
    "0-10/5 23 * dec sat-sun",
    "0 0 1-31 * mon",
    "59 23 28-31 * *",
    "0 12 * 2 7",
    "@weekly",
    "@monthly",
    "@hourly",
]


def utc(*parts):
    return int(datetime(*parts, tzinfo=timezone.utc).timestamp())


def local_times(rule, year, month, day, count, hours=0):
    """The first ticks after midnight (plus `hours`), in the rule's zone."""
    after = (
        datetime(year, month, day, tzinfo=ZoneInfo(rule.tz))
        - timedelta(seconds=1)
        + timedelta(hours=hours)
    )
    return [f"{moment:%d %H:%M%z}" for moment in rule.upcoming(count, after)]


@pytest.mark.parametrize("line", LINES)
def test_an_expression_means_the_same_as_in_croniter_over_ten_years(line):
    start, end = utc(2024, 1, 1), utc(2034, 1, 1)
    rule, theirs = (
        cron(line),
        croniter(line, datetime(2024, 1, 1, tzinfo=timezone.utc) - timedelta(seconds=1)),
    )
    for tick in islice(rule.ticks(start, end), 5000):
        assert tick == int(theirs.get_next(float)), line
    for moment in random.Random(line).sample(
        range(start, end), 200
    ):  # from any start, not only step by step
        asked = datetime.fromtimestamp(moment, timezone.utc)
        assert rule.after(moment) == int(croniter(line, asked).get_next(float)), (line, asked)


@functools.lru_cache
def clock_changes(zone):
    """The local times within a day of each daylight saving change, over ten years."""
    place, changes = ZoneInfo(zone), []
    for minute in range(utc(2024, 1, 1), utc(2034, 1, 1), 1800):
        before, after = (
            datetime.fromtimestamp(second, place).utcoffset() for second in (minute - 1800, minute)
        )
        if before != after:
            changes.append(
                {
                    moment: datetime.fromtimestamp(moment, place).replace(tzinfo=None, fold=0)
                    for moment in range(minute - 86_400, minute + 86_400, 60)
                }
            )
    return changes


def debian_ticks(line, minutes):
    """The ticks within `minutes` (Unix seconds -> local time), by croniter and crontab(5)."""
    first, last = min(minutes.values()), max(minutes.values())
    matches = set()
    theirs = croniter(line, first - timedelta(seconds=1))
    while (match := theirs.get_next(datetime)) <= last:
        matches.add(match)
    if any(field.startswith("*") for field in line.split()[:2]):
        return {moment for moment, local in minutes.items() if local in matches}
    first_pass = {local: moment for moment, local in reversed(minutes.items())}
    ticks = {first_pass[match] for match in matches & first_pass.keys()}
    for skipped in matches - first_pass.keys():
        ticks.add(next(moment for moment, local in minutes.items() if local > skipped))
    return ticks


@pytest.mark.parametrize(
    "zone",
    [
        "Europe/Berlin",
        "America/New_York",
        "Australia/Lord_Howe",
        "Africa/Casablanca",
        "Africa/Cairo",
        "America/Havana",
    ],
)
@pytest.mark.parametrize(
    "line",
    [
        "30 2 * * *",
        "0 1-3 * * *",
        "*/15 * * * *",
        "0 0 * * mon",
        "45 1,2 * * *",
        "*/15 2 * * *",
        "*/20 0,3 * * *",
        "15 */2 * * *",
        "0,30 0-3 * * *",
    ],
)
def test_around_each_daylight_saving_change_ticks_follow_debians_cron(zone, line):
    """cronsim steps by whole hours, and misses ticks after Lord Howe's changes by half an hour."""
    rule, place = cron(line, tz=zone), ZoneInfo(zone)
    assert len(clock_changes(zone)) >= 20
    for minutes in clock_changes(zone):
        expected = sorted(debian_ticks(line, minutes))
        first, last = min(minutes), max(minutes)
        assert list(rule.ticks(first, last)) == expected
        assert rule.last_ticks(first, last, 5000) == expected
        for moment in random.Random(zone).sample(list(minutes), 50):
            following = [tick for tick in expected if tick > moment]
            assert not following or rule.after(moment) == following[0]
            assert rule.last_ticks(first, moment, 1) == [t for t in expected if t <= moment][-1:]
        if not line.startswith("*") and "*/" not in line:
            theirs = CronSim(line, datetime.fromtimestamp(first - 1, place))
            assert [int(next(theirs).timestamp()) for _ in expected] == expected


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Australia/Lord_Howe", "Africa/Casablanca"])
@pytest.mark.parametrize("line", ["30 2 * * *", "0 1-3 * * *", "*/15 * * * *", "0 0 * * mon"])
def test_far_from_daylight_saving_changes_ticks_are_those_of_croniter(zone, line):
    rule, place = cron(line, tz=zone), ZoneInfo(zone)
    near = [(min(minutes), max(minutes)) for minutes in clock_changes(zone)]
    for moment in random.Random(zone).sample(range(near[0][0], near[-1][1]), 100):
        asked = datetime.fromtimestamp(moment, place)
        expected = int(croniter(line, asked).get_next(float))
        if not any(
            first <= second <= last for first, last in near for second in (moment, expected)
        ):
            assert rule.after(moment) == expected, asked


SPECIAL_DAYS = {
    "0 6 L * *": lambda day: (day + timedelta(days=1)).day == 1,
    "0 6 LW * *": lambda day: (
        day.weekday() < 5
        and all(
            later.weekday() > 4 or later.month != day.month
            for later in (day + timedelta(days=number) for number in range(1, 4))
        )
    ),
    "0 6 * * 5L": lambda day: day.weekday() == 4 and (day + timedelta(days=7)).month != day.month,
    "0 6 * * friL": lambda day: day.weekday() == 4 and (day + timedelta(days=7)).month != day.month,
    "0 6 * * 5#2": lambda day: day.weekday() == 4 and 8 <= day.day <= 14,
    "0 6 * * sun#5": lambda day: day.weekday() == 6 and day.day > 28,
    "0 6 15,L feb *": lambda day: (
        day.month == 2 and (day.day == 15 or (day + timedelta(days=1)).day == 1)
    ),
    "0 6 */10 * mon": lambda day: day.weekday() == 0 and day.day in (1, 11, 21, 31),
    "0 6 1-7 * mon": lambda day: day.weekday() == 0 or day.day <= 7,
}


@pytest.mark.parametrize("line", SPECIAL_DAYS)
def test_special_days_over_ten_years(line):
    start, end = utc(2024, 1, 1), utc(2034, 1, 1)
    days = [datetime.fromtimestamp(start + 86_400 * number, timezone.utc) for number in range(3653)]
    expected = [int(day.timestamp()) + 6 * 3600 for day in days if SPECIAL_DAYS[line](day)]
    assert list(cron(line).ticks(start, end)) == expected
    assert cron(line).last_ticks(start, end, 10_000) == expected


def values(low, high, names=()):
    """A member of a cron field's list."""
    number = st.integers(low, high)
    value = st.one_of(number.map(str), st.sampled_from(names or ["*"]))
    ranges = st.tuples(number, number).map(lambda pair: f"{min(pair)}-{max(pair)}")
    stepped = st.tuples(st.one_of(ranges, st.just("*")), st.integers(1, high)).map(
        lambda pair: f"{pair[0]}/{pair[1]}"
    )
    return st.lists(st.one_of(value, ranges, stepped, st.just("*")), min_size=1, max_size=4).map(
        ",".join
    )


EXPRESSIONS = st.tuples(
    values(0, 59),
    values(0, 23),
    values(1, 31, ["L", "LW", "lw"]),
    values(1, 12, ["jan", "DEC"]),
    values(0, 7, ["sun", "5L", "friL", "2#5", "Mon#1"]),
).map(" ".join)


@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(EXPRESSIONS, st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe"]))
def test_expressions_never_match_or_have_equal_ticks_in_both_directions(line, tz):
    try:
        rule = cron(line, tz=tz)
    except ScheduleError as error:
        assert "never matches" in str(error)
        return
    assert describe(rule).endswith(f" ({tz})")
    first = utc(2026, 3, 28)
    ticks = list(islice(rule.ticks(first), 40))
    assert ticks == sorted(set(ticks)) and first <= ticks[0]
    assert rule.last_ticks(first, ticks[-1], 1000) == ticks
    assert [rule.after(tick) for tick in ticks[:-1]] == ticks[1:]


@settings(deadline=None, max_examples=500)
@given(st.text(alphabet="0123456789*/,-#LW? sunJAN@", max_size=60))
def test_any_text_is_a_rule_or_refused(line):
    try:
        rule = cron(line)
    except ScheduleError:
        return
    assert rule.after(utc(2026, 1, 1)) and describe(rule)


def test_the_calendar_ends_with_the_year_9999():
    rule = cron("0 0 29 2 *", tz="Asia/Tokyo")
    assert rule.after(MAX_TIMESTAMP) is None and rule.after(MAX_TIMESTAMP - 1) is None
    assert len(list(rule.ticks(utc(9990, 1, 1)))) == 2
    assert cron("* * * * *", tz="Etc/GMT-14").last_ticks(0, float("inf"), 1) == [MAX_TIMESTAMP]


def test_a_year_without_a_scheduler_is_caught_up_in_bounded_work(monkeypatch):
    walked = []
    walk = CronSim.__next__
    monkeypatch.setattr(CronSim, "__next__", lambda sim: walked.append(sim) or walk(sim))
    now = utc(2026, 7, 1, 12, 0, 30)
    for rule in (
        every(seconds=1),
        every(seconds=1, missed="all"),
        cron("* * * * *"),
        cron("* * * * *", missed="all", tz="Europe/Berlin"),
        cron("* * * * *", missed="skip"),
    ):
        due = ticker.due_ticks(rule, "busy", now - 366 * 86_400 - 30, now)
        assert due.missed == MISSED_MAX_TICKS and describe_missed(due.missed) == "1,000+"
        assert len(due.jobs) == {"once": 1, "all": 1000, "skip": 0}[rule.missed]
    assert len(walked) < 6000


def test_in_spring_a_skipped_time_runs_once_at_the_change():
    assert local_times(cron("30 2 * * *", tz="Europe/Berlin"), 2026, 3, 28, 3) == [
        "28 02:30+0100",
        "29 03:00+0200",
        "30 02:30+0200",
    ]
    assert local_times(cron("0-59/20 2 * * *", tz="Europe/Berlin"), 2026, 3, 29, 2) == [
        "29 03:00+0200",
        "30 02:00+0200",
    ]
    assert local_times(cron("0,30 2,3 * * *", tz="Europe/Berlin"), 2026, 3, 29, 3) == [
        "29 03:00+0200",
        "29 03:30+0200",
        "30 02:00+0200",
    ]
    assert local_times(cron("0 0 * * *", tz="Africa/Cairo"), 2026, 4, 24, 2) == [
        "24 01:00+0300",
        "25 00:00+0300",
    ]


def test_in_autumn_a_repeated_time_runs_in_the_first_pass():
    assert local_times(cron("30 2 * * *", tz="Europe/Berlin"), 2026, 10, 25, 2) == [
        "25 02:30+0200",
        "26 02:30+0100",
    ]
    assert local_times(cron("0,30 2,3 * * *", tz="Europe/Berlin"), 2026, 10, 25, 4) == [
        "25 02:00+0200",
        "25 02:30+0200",
        "25 03:00+0100",
        "25 03:30+0100",
    ]
    again = cron("0 1 * * *", tz="America/New_York")
    first = again.after(utc(2026, 11, 1, 4))
    assert again.localize(first).isoformat() == "2026-11-01T01:00:00-04:00"
    for second in range(
        first, first + 7200, 600
    ):  # also not when the search starts in the second of the two hours
        assert again.localize(again.after(second)).isoformat() == "2026-11-02T01:00:00-05:00"


def test_a_star_skips_the_skipped_hour_and_runs_in_both_repeated_hours():
    assert local_times(cron("*/20 2 * * *", tz="Europe/Berlin"), 2026, 3, 29, 1) == [
        "30 02:00+0200"
    ]
    assert local_times(cron("*/30 2 * * *", tz="Europe/Berlin"), 2026, 10, 25, 4) == [
        "25 02:00+0200",
        "25 02:30+0200",
        "25 02:00+0100",
        "25 02:30+0100",
    ]


def test_an_expression_for_every_hour_follows_elapsed_time():
    for day in ((2026, 3, 29), (2026, 10, 25)):
        begin = int(datetime(*day, tzinfo=BERLIN).timestamp())
        ticks = list(cron("*/5 * * * *", tz="Europe/Berlin").ticks(begin, begin + 6 * 3600))
        assert ticks == list(range(begin, begin + 6 * 3600 + 1, 300))
    assert local_times(cron("30 * * * *", tz="Europe/Berlin"), 2026, 10, 25, 4, hours=1) == [
        "25 01:30+0200",
        "25 02:30+0200",
        "25 02:30+0100",
        "25 03:30+0100",
    ]
    assert local_times(cron("30 * * * *", tz="Europe/Berlin"), 2026, 3, 29, 2, hours=1) == [
        "29 01:30+0100",
        "29 03:30+0200",
    ]


def test_every_counts_from_the_epoch_or_from_its_start():
    assert every(minutes=5).after(utc(2026, 1, 1, 0, 3)) == utc(2026, 1, 1, 0, 5)
    assert every(minutes=5).after(utc(2026, 1, 1, 0, 5)) == utc(2026, 1, 1, 0, 10)
    start = datetime(2026, 1, 1, 0, 0, 7, tzinfo=timezone.utc)
    rule = every(minutes=5, start=start, end=start + timedelta(minutes=10))
    assert [tick - utc(2026, 1, 1) for tick in rule.ticks(0, utc(2027, 1, 1))] == [7, 307, 607]
    assert every(hours=1, minutes=30).seconds == 5400


def test_a_start_between_two_seconds_begins_with_the_next_one():
    start = datetime(2026, 1, 1, 0, 0, 1, 500_000, tzinfo=timezone.utc)
    first = int(start.timestamp()) + 1
    assert list(every(hours=1, start=start).ticks(0, first + 3600)) == [first, first + 3600]


def test_start_and_end_hold_for_cron_and_a_naive_one_is_of_this_machine():
    start = datetime(2026, 5, 5, 6, 0)
    rule = cron("0 * * * *", start=start, end=start + timedelta(hours=2))
    first = int(start.timestamp())
    assert list(rule.ticks(0, first + 86400)) == [first, first + 3600, first + 7200]


def test_the_last_ticks_are_found_without_walking_through_a_year():
    now = utc(2026, 7, 1, 12, 0, 30)
    assert cron("* * * * *").last_ticks(now - 366 * 86400, now, 1) == [now - 30]
    assert every(seconds=1).last_ticks(now - 366 * 86400, now, 3) == [now - 2, now - 1, now]
    assert cron("0 6 1 1 *").last_ticks(utc(2020, 1, 1), now, 10) == [
        utc(year, 1, 1, 6) for year in range(2020, 2027)
    ]
    assert cron("0 6 * * *").last_ticks(now, now + 60, 5) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "0 6 * * mon-fryday",
            "field 5 (day of week): 'fryday' is wrong; did you mean fri?",
        ),
        ("60 * * * *", "field 1 (minute): '60' is wrong; use 0 to 59"),
        ("0  24 * * *", "field 2 (hour): '24'"),
        (
            "* * * *",
            "has 4 fields, and must have five: minute, hour, day of month, month, day of week",
        ),
        ("* * * * * *", "for seconds there is every(seconds=…)"),
        ("@reboot", "there are @yearly, @annually, @monthly"),
        ("0 22-2 * * *", "the range runs backwards: 22-23,0-2"),
        ("5/15 * * * *", "a step needs a range before it: 5-59/15"),
        ("*/0 * * * *", "field 1 (minute): '0' is wrong; use a whole step"),
        ("0 0 31 2,4 *", "no date has day of month '31', month '2,4'"),
        ("0 0 */30 * mon#2", "never matches"),
        ("0 0 * L *", "field 4 (month): 'L' is wrong"),
        ("0 0 15W * *", "'15W' is wrong; use 1 to 31, L (the last day) or LW (the last weekday)"),
        ("0 0 * * mon#6", "field 5 (day of week): 'mon#6' is wrong"),
        ("0 0 * * L", "5L (the last Friday)"),
        ("1,,2 * * * *", "field 1 (minute): '' is wrong"),
        ("0 0 * foo *", "use 1 to 12 or jan to dec"),
        ("٣ * * * *", "'٣' is wrong"),
        ("1- * * * *", "field 1 (minute): '' is wrong"),
        ("0 0 * * " + "1," * 1000 + "1", "has 2,009 characters; use at most 1,000"),
        ("", "takes an expression of five fields"),
    ],
)
def test_a_wrong_expression_is_refused_with_the_field_and_the_remedy(line, words):
    with pytest.raises(ScheduleError) as refused:
        cron(line)
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "line", ["* * * * *", "*/20 6-22 * * mon-fri", "30 2 * * *", "15 1,2 1,15 * sun"]
)
@pytest.mark.parametrize("tz", ["UTC", "Europe/Berlin", "Australia/Lord_Howe"])
def test_the_last_ticks_are_those_of_a_walk_forward(line, tz):
    rule, begin = (
        cron(line, tz=tz),
        int(datetime(2026, 3, 20, 13, 7, tzinfo=timezone.utc).timestamp()),
    )
    for days in (1, 20):
        end = begin + days * 86_400
        ticks = list(rule.ticks(begin, end))
        for count in (1, 7, len(ticks) + 1):
            assert rule.last_ticks(begin, end, count) == ticks[-count:]


@pytest.mark.parametrize(
    "make",
    [
        lambda: every(5),
        lambda: every(seconds="5"),
        lambda: every(seconds=float("nan")),
        lambda: every(days=10**9),
        lambda: every(seconds=float("inf")),
        lambda: every(weeks=10**7),
        lambda: every(),
        lambda: every(seconds=0.5),
        lambda: every(minute=5),
        lambda: every(minutes=5, missed="never"),
        lambda: every(minutes=5, jitter=300),
        lambda: every(minutes=5, times=0),
        lambda: every(minutes=5, overlap=1),
        lambda: every(minutes=5, start="tomorrow"),
        lambda: cron("@daily", tz="Europe/Berln"),
        lambda: cron(5),
        lambda: every(days=1, start=datetime(2026, 1, 2), end=datetime(2026, 1, 1)),
        lambda: cron("@daily", tz="../etc"),
    ],
)
def test_a_bad_rule_is_refused(make):
    with pytest.raises(ScheduleError, match=r"; |did you mean|takes|for example"):
        make()


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (every(minutes=5), "every 5 minutes"),
        (every(hours=1), "every hour"),
        (every(minutes=90), "every 90 minutes"),
        (every(days=1), "every day at 00:00 UTC"),
        (
            cron("0 6 * * mon-fri", tz="Europe/Berlin"),
            "at 06:00 on Monday through Friday (Europe/Berlin)",
        ),
        (cron("*/5 * * * *"), "every fifth minute of every hour (UTC)"),
        (cron("30 2 * * *"), "at 02:30 every day (UTC)"),
        (cron("*/5 9-17 * * *"), "every fifth minute from 09:00 through 17:59 (UTC)"),
        (cron("*/45 * * * *"), "every 45th minute of every hour (UTC)"),
        (
            cron("0 0 1,15 * mon"),
            "at 00:00 on the first and the 15th day of month or on Monday (UTC)",
        ),
        (
            cron("15,45 * * jan-mar sat,sun"),
            "at minutes 15 and 45 of every hour on Saturday and Sunday in every month from January "
            "through March (UTC)",
        ),
        (cron("0 0 22 * *"), "at 00:00 on the 22nd day of every month (UTC)"),
        (cron("0 0 L * *"), "at 00:00 on the last day of every month (UTC)"),
        (cron("0 9 * * friL"), "at 09:00 on the last Friday of the month (UTC)"),
        (
            every(minutes=1, times=3, overlap=False, missed="skip", jitter=5),
            "every minute; at most 3 times; up to 5 s later; only when the job before has ended; "
            "missed runs are skipped",
        ),
    ],
)
def test_a_rule_has_a_description(rule, words):
    assert describe(rule) == words


def test_a_rule_comes_back_from_redis_as_it_was():
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    for rule in (
        every(minutes=5),
        cron("0 6 * * mon-fri", tz="Europe/Berlin", overlap=False, missed="all", jitter=2.5),
        every(days=1, start=start, end=start + timedelta(days=9), times=4),
    ):
        assert Rule.from_json(rule.to_json()) == rule
    for hostile in (
        "",
        "[]",
        "{}",
        '{"seconds": "x"}',
        '{"expression": "* * *"}',
        '{"seconds": 5, "evil": 1}',
        "null",
    ):
        with pytest.raises(ScheduleError):
            Rule.from_json(hostile)


def test_declared_arguments_must_fit_the_signature_of_the_function():
    def greet(name):
        return name

    assert every(minutes=5, args=["Ada"])(greet) is greet
    with pytest.raises(TypeError, match=r"greet.*missing.*args"):
        every(minutes=5)(greet)
    with pytest.raises(TypeError, match="plain function"):
        every(minutes=5)(print)


@pytest.mark.parametrize(
    ("expression", "same"),
    [
        ("5-5/10 0 * * *", "5 0 * * *"),
        ("0 19-19/4 * * *", "0 19 * * *"),
        ("0 0 1-1/7 * *", "0 0 1 * *"),
        ("0 0 * 3-3/2 *", "0 0 * 3 *"),
        ("0 0 * * mon-mon/2", "0 0 * * 1"),
    ],
)
def test_step_on_a_range_of_one_value_is_that_value(expression, same):
    """The step went on to the end of the field, and the description said otherwise."""
    assert parse_expression(expression) == parse_expression(same)


@pytest.mark.parametrize(
    ("expression", "item", "field"),
    [
        ("0 0 L-3 * *", "L-3", 3),
        ("0 0 * * 1-5#2", "1-5#2", 5),
        ("0 9 * * 1#-1", "1#-1", 5),
        ("-1 * * * *", "-1", 1),
        ("0 0 * * fri#2/2", "fri#2/2", 5),
    ],
)
def test_wrong_special_value_is_quoted_as_it_was_written(expression, item, field):
    with pytest.raises(ScheduleError, match=rf"field {field} .*: {re.escape(repr(item))} is wrong"):
        parse_expression(expression)


def test_either_of_two_day_fields_is_described_with_or():
    assert "or on Monday" in describe(cron("0 0 1 * 1"))
    assert "or on the fifth Monday" in describe(cron("0 0 29 2 1#5"))
