"""Reading ahead: which commands are sent, and which replies are used."""

from __future__ import annotations

import pytest

from rqjobs.broker.read_ahead import ReadAhead

NAMES, ONE, TWO = ("SMEMBERS", "names"), ("HGETALL", "1"), ("HGETALL", "2")


@pytest.fixture
def sent():
    """What was sent: a list of commands for each round trip."""
    return []


@pytest.fixture
def send(sent):
    """Answer each command with itself and the number of the round trip."""

    def make(commands):
        sent.append([*commands])
        return [(command, len(sent)) for command in commands]

    return make


def test_what_was_asked_the_last_time_comes_with_the_first_call(sent, send):
    first = ReadAhead(None)
    assert first.replies([NAMES], send) == [(NAMES, 1)]
    assert first.replies([ONE, TWO], send) == [(ONE, 2), (TWO, 2)]
    assert first.asked == [ONE, TWO]
    sent.clear()
    second = ReadAhead(None, first.asked)
    assert second.replies([NAMES], send) == [(NAMES, 1)]
    assert second.replies([TWO, ONE], send) == [(TWO, 1), (ONE, 1)]
    assert sent == [[NAMES, ONE, TWO]] and second.asked == [TWO, ONE]


def test_a_step_with_anything_new_is_a_round_trip_of_its_own(sent, send):
    ahead = ReadAhead(None, [ONE, TWO])
    ahead.replies([NAMES], send)
    three = ("HGETALL", "3")
    assert ahead.replies([ONE, three], send) == [(ONE, 2), (three, 2)]
    assert ahead.replies([TWO], send) == [(TWO, 1)]
    assert sent == [[NAMES, ONE, TWO], [ONE, three]]


def test_a_reply_is_used_once(sent, send):
    ahead = ReadAhead(None, [ONE, ONE])
    ahead.replies([NAMES], send)
    assert ahead.replies([ONE, ONE], send) == [(ONE, 1)] * 2
    assert ahead.replies([ONE], send) == [(ONE, 2)]
    again = ReadAhead(None, [ONE])
    again.replies([NAMES], send)
    assert again.replies([ONE, ONE], send) == [(ONE, 4)] * 2


def test_a_failed_first_call_may_be_repeated(sent, send):
    ahead = ReadAhead(None, [ONE])

    def fail(commands):
        raise ConnectionError

    with pytest.raises(ConnectionError):
        ahead.replies([NAMES], fail)
    assert ahead.replies([NAMES], send) == [(NAMES, 1)]
    assert ahead.replies([ONE], send) == [(ONE, 1)]
