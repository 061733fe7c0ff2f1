"""Jobs of the tests of `rqjobs.testing`."""

import os
import time
from pathlib import Path

import flask

import rqjobs
from rqjobs import Snooze, backoff, every, get_current_job, job

app = flask.Flask(__name__)
app.config["NAME"] = "configured"
app_of_test = flask.Flask("test")
app_of_test.config["NAME"] = "of the test"
calls = []


def note(number, kind="pdf"):
    calls.append((number, kind, get_current_job().id))
    return {"number": number}


def types_of(*values):
    return [type(value).__name__ for value in values]


def boom():
    raise ValueError("boom")


async def add_one(number):
    return number + 1


def enqueue_note(number):
    return rqjobs.enqueue(note, number).return_value()


def enqueue_boom():
    return rqjobs.enqueue(boom).id


def enqueue_itself():
    rqjobs.enqueue(enqueue_itself)


def name_of_app():
    return flask.current_app.config["NAME"]


def has_app():
    return flask.has_app_context()


@job(unique="args")
def once(number):
    return number


def fail_until(path, tries):
    """Fail until the file has this many lines."""
    with Path(path).open("a") as file:
        file.write("x")
    if Path(path).stat().st_size < tries:
        raise OSError("not yet")
    return "done"


@job(retry=backoff(3, base=60))
def fail_with_backoff():
    raise ValueError("boom")


def snooze():
    raise Snooze(60)


def interrupt():
    raise KeyboardInterrupt


@job(expires=10)
def expiring():
    return "in time"


def process_id():
    return os.getpid()


def hang(path):
    partial = Path(f"{path}.partial")
    partial.write_text(f"{os.getpid()} {os.getppid()}")
    partial.rename(path)
    while True:
        time.sleep(60)


@every(hours=1)
def hourly():
    calls.append("hourly")
