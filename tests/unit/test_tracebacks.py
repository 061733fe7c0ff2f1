"""The parts of a traceback's text, whatever the text is."""

from __future__ import annotations

import json
import sys

import odd_values
import page_jobs
import pytest

from rqjobs import config, texts
from rqjobs.web import tracebacks


def text_of(call, *args) -> str:
    try:
        call(*args)
    except BaseException:
        return "".join(texts.format_exception(*sys.exc_info()))
    raise AssertionError("it raised nothing")


def test_the_exception_the_own_frames_and_those_of_libraries_are_apart():
    found = tracebacks.parse(text_of(page_jobs.json_of, "{"))
    assert found.last.name == "json.decoder.JSONDecodeError"
    assert found.last.message.startswith("Expecting property name")
    own, library = found.last.parts
    assert own.is_own and [frame.function for frame in own.frames] == ["text_of", "json_of"]
    assert own.frames[1].source[0] == "return json.loads(text)"
    assert not library.is_own and library.libraries == "Python" and not found.before


def test_a_chain_of_exceptions_ends_with_the_last_one():
    def chained():
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second\nof two lines") from None

    def caused():
        try:
            chained()
        except ValueError as error:
            raise RuntimeError from error

    found = tracebacks.parse(text_of(caused))
    assert (found.last.name, found.last.message) == ("RuntimeError", "")
    assert [(one.name, one.message, one.relation) for one in found.before] == [
        ("ValueError", "second\nof two lines", "this was the cause")
    ]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no groups")
def test_the_exceptions_of_a_group_follow_it():
    def grouped():
        raise ExceptionGroup("outer", [ValueError("a"), TypeError("b")])  # noqa: F821

    found = tracebacks.parse(text_of(grouped))
    assert (found.last.name, found.last.message) == ("ExceptionGroup", "outer (2 sub-exceptions)")
    assert [frame.function for frame in found.last.frames] == ["text_of", "grouped"]
    assert not found.before


def test_a_syntax_error_and_a_repeated_frame_are_read():
    found = tracebacks.parse(text_of(compile, "a b", "own.py", "exec"))
    assert found.last.name == "SyntaxError"
    assert found.last.frames[-1].file == "own.py" and found.last.frames[-1].source[0] == "a b"

    def forever():
        forever()

    found = tracebacks.parse(text_of(forever))
    assert "repeated" in found.last.frames[-1].source[-1]
    assert found.last.name == "RecursionError"


@pytest.mark.parametrize("kind", odd_values.ERRORS)
def test_tracebacks_of_odd_exceptions_are_read(kind):
    text = text_of(odd_values.throw, kind)
    found = tracebacks.parse(text[: 64 * 1024])
    assert found.last.name or found.last.message or found.last.lines or found.last.frames


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "Traceback (most recent call last):",
        "  + Exception Group Traceback (most recent call last):",
        "    | Traceback (most recent call last):\n    | x",
        'File "a", line 3',
        "Error: a\n    at Object.run (/app/run.js:3:1)",
        "\x00" * 100,
        "|" * 70_000,
        "x" * 70_000,
        "Traceback (most recent call last):\n" + '  File "a", line 1, in b\n' * 3000,
        "Traceback (most recent call last):\nA: b\n" * 3000,
    ],
)
def test_any_text_is_read(text):
    found = tracebacks.parse(text)
    assert len(found.before) + len(found.within) <= tracebacks.MAX_SECTIONS
    assert len(found.last.frames) <= tracebacks.MAX_FRAMES


def test_which_files_are_the_users_own(settings):
    config.use(modules=("shop.jobs",))
    own = ["/app/shop/jobs.py", "jobs.py", r"C:\app\jobs.py", "<string>", "/srv/lib/thing.py"]
    own += ["/usr/lib/python3/dist-packages/shop/jobs.py", "/x/site-packages/shop.py"]
    library = [json.__file__, "/v/lib/python3.12/site-packages/redis/client.py"]
    library += [tracebacks.__file__, "<frozen importlib._bootstrap>"]
    library += [r"C:\v\Lib\site-packages\redis\client.py", "/x/site-packages/shopping/a.py"]
    assert [path for path in own if not tracebacks.is_own(path)] == []
    assert [path for path in library if tracebacks.is_own(path)] == []
