"""Schedules in `make chaos`: they run during the kills, and every tick is accounted for."""

from __future__ import annotations

from datetime import datetime, timezone

import chaos_jobs
from chaos_environment import KEEP_SECONDS, Load, Server

from rqjobs import every, schedules
from rqjobs.broker.keys import decode

RULES = {
    "tick-all": every(seconds=1, missed="all"),
    "tick-once": every(seconds=1),
    "tick-skip": every(seconds=2, missed="skip", jitter=1),
    "tick-alone": every(seconds=1, missed="all", overlap=False),
}
SCHEDULED_JOB_SECONDS = 0.01


class TickingSchedules:
    """Adds the schedules of `RULES`; `stop` checks their counts."""

    def __init__(self, server: Server):
        self.server = server
        self.first_ticks = {}  # Unix times
        for name, rule in RULES.items():
            schedule = schedules.add(
                name,
                rule,
                chaos_jobs.work,
                SCHEDULED_JOB_SECONDS,
                result_ttl=KEEP_SECONDS,
                failure_ttl=KEEP_SECONDS,
            )
            self.first_ticks[name] = int(schedule.next.timestamp())

    def stop(self, load: Load) -> list[str]:
        """Pause the schedules and add their jobs to the load; returns wrong counts."""
        faults = []
        for name in RULES:
            schedules.pause(name)
            job_ids = self._job_ids(name)
            load.accepted.update(dict.fromkeys(job_ids, "plain"))
            faults += self._check(name, job_ids)
        return faults

    def _job_ids(self, name: str) -> list[str]:
        keys = self.server.client.scan_iter(f"rq:job:{name}-r*", 1000)
        # More than two colons: a key that belongs to a job, such as its dependents.
        return [decode(key).removeprefix("rq:job:") for key in keys if key.count(b":") == 2]

    def _check(self, name: str, job_ids: list[str]) -> list[str]:
        """Every tick up to the last one made a job, was missed, or was skipped for an overlap."""
        schedule = schedules.get(name)
        rule = RULES[name]
        first = self.first_ticks[name]
        last = first - rule.seconds
        if schedule.last:
            last = int(schedule.last.timestamp())
        due_ticks = set(range(first, last + 1, rule.seconds))
        ticks = {_tick(job_id) for job_id in job_ids}
        faults = []
        if not schedule.made or schedule.made != len(job_ids) or not ticks <= due_ticks:
            faults.append(f"{name}: counts {schedule.made} jobs, and Redis has {len(job_ids)}")
        if len(due_ticks) != schedule.made + schedule.missed + schedule.overlapped:
            faults.append(
                f"{name}: of {len(due_ticks)} ticks {schedule.made} made a job, "
                f"{schedule.missed} were missed, {schedule.overlapped} overlapped"
            )
        if rule.missed == "all" and schedule.missed:
            faults.append(f"{name}: {schedule.missed} ticks were missed")
        return faults


def _tick(job_id: str) -> int:
    """The Unix time at the end of the id of a schedule's job."""
    moment = datetime.strptime(job_id.rpartition("-")[2], "%Y%m%dT%H%M%S")
    return int(moment.replace(tzinfo=timezone.utc).timestamp())
