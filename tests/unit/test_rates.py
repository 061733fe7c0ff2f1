"""Rates and series from counts, and charts of them."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from rqjobs.broker import keys
from rqjobs.broker.counters import Kind
from rqjobs.rates import Rate, Window
from rqjobs.web import charts

NOW = 1_800_000_030.0  # half a minute after a full minute
THIS = 30_000_000


def window(minutes, day=None):
    made = Window(seconds=NOW, minutes=minutes, day=day or {})
    return made


def test_a_rate_is_measured_over_the_last_five_minutes_and_this_one():
    counts = {"q": {Kind.ENQUEUED: 11, Kind.FINISHED: 5, Kind.RETRIED: 6, Kind.POISON: 100}}
    rate = window({THIS: counts, THIS - 5: counts, THIS - 6: counts}).rate("q")
    assert rate == Rate(4.0, 4.0) and not rate.grows


@pytest.mark.parametrize(
    ("rate", "depth", "seconds"),
    [
        (Rate(10, 40), 60, 120),
        (Rate(10, 10), 60, None),
        (Rate(20, 10), 60, None),
        (Rate(20, 10), 0, 0),
        (Rate(), 5, None),
    ],
)
def test_time_to_empty(rate, depth, seconds):
    assert rate.seconds_to_empty(depth) == seconds


def test_a_queue_grows_if_clearly_more_comes_in():
    assert Rate(20, 10).grows and not Rate(10.1, 10).grows and not Rate().grows


def test_a_queue_grows_in_most_of_its_minutes():
    more = {"q": {Kind.ENQUEUED: 20, Kind.FINISHED: 10}}
    less = {"q": {Kind.ENQUEUED: 10, Kind.FINISHED: 10}}
    burst = {"q": {Kind.ENQUEUED: 10_000}}
    assert window({THIS - 1: more, THIS - 2: more, THIS - 3: more, THIS - 4: less}).grows("q")
    assert not window({THIS - 1: more, THIS - 2: more, THIS - 4: less}).grows("q")
    assert not window({THIS: burst, THIS - 1: burst, THIS - 6: more}).grows("q")
    emptied = {"q": {Kind.FINISHED: 10_000}}
    assert not window({THIS - 1: more, THIS - 2: more, THIS - 3: more, THIS - 5: emptied}).grows(
        "q"
    )


def test_an_hour_has_sixty_steps_and_the_day_takes_what_is_older():
    made = window(
        {THIS: {"a": {Kind.FINISHED: 2}, "b": {Kind.FINISHED: 1}}, THIS - 1: {}},
        {THIS: {Kind.FINISHED: 99}, THIS - 600: {Kind.FINISHED: 7}},
    )
    hour, day = made.hour(), made.last_day()
    assert len(hour.of(Kind.FINISHED)) == 60 and hour.of(Kind.FINISHED)[-1] == 3
    assert made.hour("a").total(Kind.FINISHED) == 2
    assert len(day.of(Kind.FINISHED)) == 96 and day.total(Kind.FINISHED) == 10
    assert hour.end == THIS * 60 and day.end <= NOW


def test_a_minute_that_is_over_is_read_once():
    made = Window()
    assert len(made.commands(NOW)) == 61
    made.take([{b"finished:a": b"1"}] * 60 + [{}])
    made.forget_current()
    assert made.commands(NOW + 1) == [("HGETALL", keys.counts(THIS))]
    made.take([{b"finished:a": b"5"}])
    assert made.hour("a").total(Kind.FINISHED) == 64
    made.forget_current()
    assert made.commands(NOW + 60) == [
        ("HGETALL", keys.counts(THIS)),
        ("HGETALL", keys.counts(THIS + 1)),
        ("HGETALL", keys.COUNTS_DAY),
    ]
    assert len(made.minutes) == 58


HOSTILE = '"><script>alert(1)</script>'


def test_charts_are_pictures_with_a_text_and_without_style_or_script():
    layers = [charts.Bars(HOSTILE, [0, 3, 1], "good"), charts.Bars("failed", [0, 1, 0], "bad")]
    for svg in (
        charts.chart(layers, HOSTILE, ["a", HOSTILE, "c"], [1, 2, 3]),
        charts.chart([], "nothing"),
        charts.sparkline([1, 5, 2.5], HOSTILE),
        charts.sparkline([], "nothing"),
    ):
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img" and root.get("aria-label")
        tags = {one.tag for one in root.iter()}
        assert tags <= {"svg", "g", "title", "rect", "polyline"}
        assert not any("style" in one.attrib for one in root.iter())


def test_the_bars_of_a_step_fill_no_more_than_the_picture():
    root = ElementTree.fromstring(
        charts.chart([charts.Bars("a", [1, 500], "good"), charts.Bars("b", [500, 1], "bad")], "x")
    )
    for bar in root.iter("rect"):
        assert float(bar.get("y")) >= 0
        assert float(bar.get("y")) + float(bar.get("height")) <= 101.6
