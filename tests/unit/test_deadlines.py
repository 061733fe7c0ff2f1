"""A request that waits gets more time from gunicorn's worker, and only that one."""

from __future__ import annotations

import time

from gunicorn.workers.gthread import ThreadWorker

from rqjobs.web import deadlines
from rqjobs.web.gunicorn_worker import REQUEST_SECONDS, Worker


def test_a_wait_extends_the_deadline_of_its_request(monkeypatch):
    worker = Worker.__new__(Worker)
    worker.deadlines = {}
    monkeypatch.setattr(ThreadWorker, "handle_request", lambda *_: deadlines.extend(60))
    now = time.monotonic()
    worker.handle_request(None, "waits")
    assert worker.deadlines["waits"] >= now + REQUEST_SECONDS + 60
    monkeypatch.setattr(ThreadWorker, "handle_request", lambda *_: None)
    worker.handle_request(None, "reads")
    assert worker.deadlines["reads"] < time.monotonic() + REQUEST_SECONDS + 1
