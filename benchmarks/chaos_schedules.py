"""Schedules in `make chaos`: they tick while everything is killed, and then every tick must be accounted for."""

from __future__ import annotations

from datetime import datetime, timezone

import chaos_jobs
from chaos_stage import FOREVER, Load, Server

from rqjobs import every, schedules
from rqjobs.broker.keys import decode

RULES = {
    "tick-all": every(seconds=1, missed="all"),
    "tick-once": every(seconds=1),
    "tick-skip": every(seconds=2, missed="skip", jitter=1),
    "tick-alone": every(seconds=1, missed="all", overlap=False),
}


class Ticking:
    """Starts the schedules; `stop` says what they have made, and what is wrong with it."""

    def __init__(self, server: Server):
        self.server = server
        self.first = {}
        for name, rule in RULES.items():
            made = schedules.add(
                name, rule, chaos_jobs.work, 0.01, result_ttl=FOREVER, failure_ttl=FOREVER
            )
            self.first[name] = int(made.next.timestamp())

    def stop(self, load: Load) -> list[str]:
        """Pause them, and hand their jobs to the load, which waits for them and counts them like its own."""
        faults = []
        for name, rule in RULES.items():
            schedules.pause(name)
            one = schedules.get(name)
            ids = [
                decode(key).removeprefix("rq:job:")
                for key in self.server.client.scan_iter(f"rq:job:{name}-r*", 1000)
                if key.count(b":") == 2
            ]
            load.accepted.update(dict.fromkeys(ids, "plain"))
            ticks = {_tick(job_id) for job_id in ids}
            last = int(one.last.timestamp()) if one.last else self.first[name] - rule.seconds
            wanted = set(range(self.first[name], last + 1, rule.seconds))
            if not one.made or one.made != len(ids) or not ticks <= wanted:
                faults.append(
                    f"{name}: says that it made {one.made} jobs, and there are {len(ids)}"
                )
            if len(wanted) != one.made + one.missed + one.overlapped:
                faults.append(
                    f"{name}: of {len(wanted)} ticks {one.made} made a job, {one.missed} were missed, "
                    f"{one.overlapped} overlapped"
                )
            if rule.missed == "all" and one.missed:
                faults.append(f"{name}: {one.missed} ticks were missed")
        return faults


def _tick(job_id: str) -> int:
    moment = datetime.strptime(job_id.rpartition("-")[2], "%Y%m%dT%H%M%S")
    return int(moment.replace(tzinfo=timezone.utc).timestamp())
