"""`rqjobs stats --check`: the limits that the queues and workers exceed, for cron and CI."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rqjobs.alert_rules import Rule
from rqjobs.stats import QueueStats, Snapshot


def exceeded(rules: tuple[Rule, ...], snapshot: Snapshot) -> list[str]:
    """One line for each limit that is exceeded; none if all is well."""
    found: list[str] = []
    for rule in rules:
        chosen = [one for one in snapshot.queues if rule.queue in ("", one.name)]
        found += CHECKS[rule.name](rule, chosen, snapshot)
    return found


def _oldest(rule: Rule, chosen: list[QueueStats], snapshot: Snapshot) -> Iterator[str]:
    for queue in chosen:
        if queue.oldest is not None and queue.oldest > rule.limit:
            yield f"oldest: {queue.name} has a job that waits for {queue.oldest:.0f} s, over {rule.limit} s"


def _depth(rule: Rule, chosen: list[QueueStats], snapshot: Snapshot) -> Iterator[str]:
    for queue in chosen:
        if queue.queued > rule.limit:
            yield f"depth: {queue.name} has {queue.queued} waiting jobs, over {rule.limit}"


def _failed(rule: Rule, chosen: list[QueueStats], snapshot: Snapshot) -> Iterator[str]:
    number = sum(queue.failed for queue in chosen)
    if number > rule.limit:
        yield f"failed: {rule.queue or 'all queues'}: {number} failed jobs, over {rule.limit}"


def _workers(rule: Rule, chosen: list[QueueStats], snapshot: Snapshot) -> Iterator[str]:
    live = [worker for worker in snapshot.workers if worker.alive]
    if rule.queue:
        live = [worker for worker in live if rule.queue in worker.queues]
    if len(live) < rule.limit:
        where = f" listen to {rule.queue}" if rule.queue else ""
        yield f"workers: {len(live)} live workers{where}, under {rule.limit}"


CHECKS: dict[str, Callable[[Rule, list[QueueStats], Snapshot], Iterator[str]]] = {
    "oldest": _oldest,
    "depth": _depth,
    "failed": _failed,
    "workers": _workers,
}
