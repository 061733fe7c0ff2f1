"""A jobs module that declares schedules."""

from __future__ import annotations

from rq import get_current_job

from rqjobs import cron, every, job


def _note(name):
    current = get_current_job()
    current.connection.rpush(name, current.id)


@every(seconds=1)
def pulse():
    _note("pulse")


@every(seconds=2, missed="all", name="low-pulse")
@job(queue="low", timeout=20)
def other():
    _note("other")


@cron("0 6 * * mon-fri", tz="Europe/Berlin", args=["early"])
@cron("0 18 * * mon-fri", tz="Europe/Berlin", kwargs={"what": "late"})
def report(what: str):
    return what


def plain():
    pass
