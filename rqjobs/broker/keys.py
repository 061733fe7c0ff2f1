"""Every key in Redis, RQ's and ours: the one place in Python where they are spelled.

RQ's keys are its own, unchanged. Ours begin with `rqjobs:`:

    rqjobs:leases                      sorted set, worker -> end of its lease, in Redis's clock
    rqjobs:process:<worker>            hash, the worker's processes: host, pids, start times; its
                                       version, memory and pace; and since when it is quiet
    rqjobs:claims:<worker>             list, ids of its claimed jobs in the order in which they run
    rqjobs:retired-workers             sorted set, worker -> when it ended or was removed
    rqjobs:crash-backoff:<queue>       sorted set, jobs that are delayed after a crash, by due time
    rqjobs:stopped:<queue>             sorted set, those of RQ's failed jobs that were stopped
    rqjobs:canceled-expiry:<queue>     sorted set, those of RQ's canceled jobs that expired or were
                                       discarded -> when they are forgotten
    rqjobs:scheduled-without-job:<q>   hash, scheduled id that has no job -> since when
    rqjobs:paused                      hash, `queue:<name>` or `function:<name>` -> since when, in
                                       Unix seconds, and by whom if that is known
    rqjobs:paused-jobs:<function>      list, ids of the jobs that wait until it is resumed
    rqjobs:paused-jobs                 set, the functions for which there may be such a list
    rqjobs:ended-parents               set, ended jobs whose dependents are to be enqueued: an id,
                                       or `<id>:finished`
    rqjobs:slots:<key>                 hash, the jobs that hold a slot of a limit -> their workers
    rqjobs:slots-of:<worker>           hash, its claimed jobs that hold a slot -> the limit's key
    rqjobs:waiting:<key>               list, the jobs that wait for a slot or a token, in order
    rqjobs:waiting-keys                set, the keys for which jobs wait
    rqjobs:last-woken                  hash, such a key -> the job that stopped waiting last
    rqjobs:rate:<key>                  when the token bucket of a rate is full again, Unix seconds
    rqjobs:rate-due                    sorted set, key -> when a waiting job can have a token
    rqjobs:rate-wakeup                 channel, such a time
    rqjobs:unique                      hash, unique key -> the job that has it; after the end of a
                                       job with `keep` with the Unix time until which it is taken
    rqjobs:new-failures                hash, `<id>:<run>` -> what is left to do after a failure: to
                                       count it in its group, or to call on_failed
    rqjobs:failure-groups              sorted set, group of failed jobs -> its last failure
    rqjobs:failure-group:<group>       hash, the group's function, error, last message and counts:
                                       `m0` to `m59` by minute, `h0` to `h167` by hour; and
                                       `ignored`, if it is: the total at that time, since when,
                                       and by whom
    rqjobs:failure-group-jobs:<group>  sorted set, the group's failed jobs -> when each failed
    rqjobs:flow:<id>                   hash, a flow: `:shape` (the place of its first job), and the
                                       result of each finished job by the job's id
    rqjobs:flows                       sorted set, flow -> when it was enqueued. A flow that is gone may
                                       be in it until a sweep removes it
    rqjobs:flow-jobs:<id>              list, ids of its jobs, by position
    rqjobs:flow-held:<id>              list, its first jobs, until they are released
    rqjobs:held-flows                  sorted set, flow that is being stored -> when it counts as
                                       abandoned; -inf if it is being dropped, +inf if it is stored
                                       and not all of its first jobs are released
    rqjobs:log:<id>                    stream, the last lines that a job has logged: job_logs.py
    rqjobs:metrics                     hash, how long jobs waited and ran, and how they ended:
                                       `<count> <function> <queue>` -> number (job_metrics.py)
    rqjobs:metrics:last:<worker>       the number of the last counts that a worker has sent
    rqjobs:alerts                      hash, alert -> its state as JSON (alerts.py)
    rqjobs:alerts:lock, :tries         the process that observes; the tries of the first event of
                                       each channel
    rqjobs:alerts:events:<channel>     list, events that are to be sent, as JSON, in order
    rqjobs:totals                      hash, rare events since the first one: `recovered:<cause>`,
                                       `poison`, `expired`, `limit-waits`, and others
    rqjobs:outbox                      sorted set, rows of the outbox whose jobs are stored -> until
                                       when that is noted, in Unix seconds
    rqjobs:once                        sorted set, requests of the API with an Idempotency-Key whose
                                       jobs are stored -> when that is forgotten, in Unix seconds
    rqjobs:once:<key>                  string, such a request: a hash of its body
    rqjobs:once:<key>:<number>:job     string, the id of a job of the request, if it is another one
                                       than the request gave: enqueue.lua
    rqjobs:outbox:wakeup               channel, a message for new rows of the outbox
    rqjobs:counts:<minute>             hash, `<kind>:<queue>` -> number of events in this minute
                                       (Unix time / 60); kept for two hours: counters.py
    rqjobs:counts:day                  hash, minute -> its totals by kind, for the last day;
                                       `last` -> the minute up to which they are complete
    rqjobs:result                      stream, a result inside settle_success.lua; never left behind
    rqjobs:sweep:lock, :last           the lock of the sweep, and when the last one was
    rqjobs:sweep:intermediate:<queue>  hash, id -> since when it is in RQ's intermediate list
    rqjobs:sweep:strays:*              lock, cursor and first sightings of the search for strays
    rqjobs:sweep:deferred              hash, queue -> the cursor of the check of its deferred jobs
    rqjobs:sweep:unique                the cursor of the search for unique keys without a job
    rqjobs:odd:<key>                   a key of the wrong type, renamed out of the way
    rqjobs:wakeup:<queue>              channel, the due time of a new delayed job
    rqjobs:schedules:wakeup            channel, the due time of a schedule, or "declared"
    rqjobs:schedules, :*               the schedules by due time; lock, revision, declarations
    rqjobs:schedule:<name>, :*         hash, one schedule; its job, runs and outcomes
    rqjobs:activity                    stream, who did what when: activity.py
    rqjobs:activity:refused            stream, the wrong passwords of each minute
    rqjobs:login-link:<digest>         exists as long as a login link is valid
    rqjobs:login*, rqjobs:sessions     wrong passwords, and logins to the pages

Fields of ours in a job's hash: `rqjobs_token` (the claim's, which is RQ's execution id),
`rqjobs_settled_token` (the last token that settled it), `rqjobs_due` (when a deferred job is due),
`rqjobs_crashes` (when processes died under it: Unix seconds, comma-separated), `rqjobs_repeat` (of
a job with an `rq.Repeat`: its repeats and retries at the start), and `rqjobs_schedule` (the
schedule that made it). Of policies: `rqjobs_limit` (jobs at a time, seconds for each start, burst,
and key; 0 is no limit), `rqjobs_waits_for` (the key for which it waits), `rqjobs_woken` ("1"
between its wait and its claim), `rqjobs_expires` (until when it may begin:
policies/time_limits.py), `rqjobs_kill_after` (seconds after its timeout), `rqjobs_paused` (the
paused function for which it waits), `rqjobs_retry` (the retry rules of its own enqueue, as JSON:
policies/retries.py), `rqjobs_retries` (the number of its counted retries, and the Unix time of its
first failure), `rqjobs_unique` (its unique key), `rqjobs_until` ("started" if that is free when it
starts), `rqjobs_keep` (seconds for which the key is taken after its end), `rqjobs_conflict`
(`on_conflict`), `rqjobs_debounce` (its seconds, `debounce_max` or "-", and the Unix time of the
first call), `rqjobs_log` ("1" if it has logged), and `rqjobs_ending` (of a canceled job: "expired"
if it ended because it had not begun in time, "discarded" if it asked for that, or if another job
had its unique key). Of jobs that depend on many others: `rqjobs_blocker` (one that had not ended
when all were checked last). Of the jobs of a flow: `rqjobs_flow` (the place in it:
passed_results.py). Of failed jobs: `rqjobs_on_failed` (the job function to call if the job fails
for good), and `rqjobs_failure_group`. Of long loops: `rqjobs_cursors` (the positions of its loops,
as JSON), and `rqjobs_progress` (loops.py).

Field of ours in an entry of a job's results: `rqjobs_error` (the exception of a failed job:
raised.py).
"""

from __future__ import annotations

from typing import Any

from rqjobs import config

QUEUES = "rq:queues"
WORKERS = "rq:workers"
LEASES = "rqjobs:leases"
RETIRED_WORKERS = "rqjobs:retired-workers"
PAUSED = "rqjobs:paused"
PAUSED_JOBS = "rqjobs:paused-jobs"
ENDED_PARENTS = "rqjobs:ended-parents"
NEW_FAILURES = "rqjobs:new-failures"
FAILURE_GROUPS = "rqjobs:failure-groups"
FLOW_SHAPE = ":shape"  # a field of a flow that is not a job id
FLOWS = "rqjobs:flows"
HELD_FLOWS = "rqjobs:held-flows"
SWEEP_LOCK = "rqjobs:sweep:lock"
LAST_SWEEP = "rqjobs:sweep:last"
STRAYS_LOCK = "rqjobs:sweep:strays:lock"
STRAYS_CURSOR = "rqjobs:sweep:strays:cursor"
UNIQUE_CURSOR = "rqjobs:sweep:unique"
DEFERRED_CURSORS = "rqjobs:sweep:deferred"
STRAYS_SEEN = "rqjobs:sweep:strays:seen"
SCHEDULES = "rqjobs:schedules"
SCHEDULES_LOCK = "rqjobs:schedules:lock"
SCHEDULES_REVISION = "rqjobs:schedules:revision"
SCHEDULES_UNFINISHED = "rqjobs:schedules:unfinished"
SCHEDULES_DECLARED = "rqjobs:schedules:declared"
SCHEDULES_ANNOUNCED = "rqjobs:schedules:announced"
ALERTS = "rqjobs:alerts"
ALERTS_LOCK = "rqjobs:alerts:lock"
ALERT_TRIES = "rqjobs:alerts:tries"
METRICS = "rqjobs:metrics"
TOTALS = "rqjobs:totals"
RESULT = "rqjobs:result"
COUNTS_DAY = "rqjobs:counts:day"
UNIQUE = "rqjobs:unique"
OUTBOX = "rqjobs:outbox"
OUTBOX_WAKEUP_CHANNEL = "rqjobs:outbox:wakeup"
ACTIVITY = "rqjobs:activity"
REFUSED_LOGINS = "rqjobs:activity:refused"
ONCE = "rqjobs:once"
SESSIONS = "rqjobs:sessions"  # sorted set, session id -> when it expires, in Redis's clock
WAITING_KEYS = "rqjobs:waiting-keys"
LAST_WOKEN = "rqjobs:last-woken"
RATE_DUE = "rqjobs:rate-due"
RATE_WAKEUP_CHANNEL = "rqjobs:rate-wakeup"
ENDED_REGISTRIES = ("finished", "failed", "canceled")
REGISTRIES = ("scheduled", "deferred", "wip", "finished", "failed", "canceled")
DOCTOR = "rqjobs:doctor"  # never written: the doctor's commands need a key
SCHEDULES_WAKEUP_CHANNEL = "rqjobs:schedules:wakeup"
WAKEUP_PREFIX = "rqjobs:wakeup:"
QUEUE_PREFIX = "rq:queue:"
WORKER_PREFIX = "rq:worker:"
JOB_PREFIX = "rq:job:"
LOG_PREFIX = "rqjobs:log:"


# RQ's


def job(job_id: str) -> str:
    return f"rq:job:{job_id}"


def dependents(job_id: str) -> str:
    return f"rq:job:{job_id}:dependents"


def dependencies(job_id: str) -> str:
    return f"rq:job::{job_id}:dependencies"


def results(job_id: str) -> str:
    return f"rq:results:{job_id}"


def executions(job_id: str) -> str:
    return f"rq:executions:{job_id}"


def execution(job_id: str, token: str) -> str:
    return f"rq:execution:{job_id}:{token}"


def queue(name: str) -> str:
    return f"rq:queue:{name}"


def intermediate(queue: str) -> str:
    return f"rq:queue:{queue}:intermediate"


def registry(kind: str, queue: str) -> str:
    """`kind`: "scheduled", "deferred", "finished", "failed", "canceled", or "wip" (running)."""
    return f"rq:{kind}:{queue}"


def scheduled(queue: str) -> str:
    return f"rq:scheduled:{queue}"


def deferred(queue: str) -> str:
    return f"rq:deferred:{queue}"


def running(queue: str) -> str:
    return f"rq:wip:{queue}"


def failed(queue: str) -> str:
    return f"rq:failed:{queue}"


def worker(name: str) -> str:
    return f"rq:worker:{name}"


def listeners(queue: str) -> str:
    """The workers that listen to a queue."""
    return f"rq:workers:{queue}"


def scheduler_lock(queue: str) -> str:
    return f"rq:scheduler-lock:{queue}"


# Ours


def log(job_id: str) -> str:
    return f"{LOG_PREFIX}{job_id}"


def alert_events(channel: str) -> str:
    """The events that a channel has not sent."""
    return f"{ALERTS}:events:{channel}"


def last_sending(process: str) -> str:
    """The number of the last counts that a worker's process has sent."""
    return f"{METRICS}:last:{process}"


def process(worker: str) -> str:
    return f"rqjobs:process:{worker}"


def claims(worker: str) -> str:
    return f"rqjobs:claims:{worker}"


def crash_backoff(queue: str) -> str:
    return f"rqjobs:crash-backoff:{queue}"


def stopped(queue: str) -> str:
    return f"rqjobs:stopped:{queue}"


def canceled_expiry(queue: str) -> str:
    return f"rqjobs:canceled-expiry:{queue}"


def failure_group(group: str) -> str:
    return f"rqjobs:failure-group:{group}"


def failure_group_jobs(group: str) -> str:
    return f"rqjobs:failure-group-jobs:{group}"


def scheduled_without_job(queue: str) -> str:
    return f"rqjobs:scheduled-without-job:{queue}"


def seen_intermediate(queue: str) -> str:
    return f"rqjobs:sweep:intermediate:{queue}"


def slots(limit_key: str) -> str:
    return f"rqjobs:slots:{limit_key}"


def slots_of(worker: str) -> str:
    return f"rqjobs:slots-of:{worker}"


def waiting(key: str) -> str:
    """The jobs that wait for a limit's slot or token."""
    return f"rqjobs:waiting:{key}"


def flow(flow_id: str) -> str:
    return f"rqjobs:flow:{flow_id}"


def flow_jobs(flow_id: str) -> str:
    return f"rqjobs:flow-jobs:{flow_id}"


def flow_held(flow_id: str) -> str:
    return f"rqjobs:flow-held:{flow_id}"


def wakeup_channel(queue: str) -> str:
    return f"{WAKEUP_PREFIX}{queue}"


def counts(minute: int) -> str:
    """The counts of a minute: the Unix time divided by 60."""
    return f"rqjobs:counts:{minute}"


def odd(key: str) -> str:
    return f"rqjobs:odd:{key}"


def once(key: str) -> str:
    return f"rqjobs:once:{key}"


def once_job(mark: str) -> str:
    """The id of the job that a mark of `ONCE` stands for."""
    return f"rqjobs:once:{mark}:job"


def paused_queue(name: str) -> str:
    """The field of `PAUSED` for a queue."""
    return f"queue:{name}"


def paused_function(name: str) -> str:
    """The field of `PAUSED` for a job function."""
    return f"function:{name}"


def paused_jobs(function: str) -> str:
    return f"{PAUSED_JOBS}:{function}"


def schedule(name: str) -> str:
    return f"rqjobs:schedule:{name}"


def schedule_job(name: str) -> str:
    """The hash from which each job of a schedule is made."""
    return f"rqjobs:schedule:{name}:job"


def schedule_runs(name: str) -> str:
    return f"rqjobs:schedule:{name}:runs"


def schedule_outcomes(name: str) -> str:
    return f"rqjobs:schedule:{name}:outcomes"


def login_attempts(client: str) -> str:
    """The counter of wrong passwords of one client; of all together for ""."""
    if not client:
        return "rqjobs:login"
    return f"rqjobs:login:{client}"


def login_link(digest: str) -> str:
    return f"rqjobs:login-link:{digest}"


def login_pause(client: str) -> str:
    """A key that exists as long as the client must pause."""
    return f"{login_attempts(client)}:pause"


def decode(reply: Any) -> str:
    """A reply of Redis as text. Bytes that are not UTF-8 become U+FFFD."""
    if isinstance(reply, bytes):
        return reply.decode(errors="replace")
    return str(reply)


def queue_names_in(members: Any) -> list[str]:
    """The queues in a reply to `SMEMBERS rq:queues` (or an error), and the configured ones."""
    names = set(config.current().queues)
    if isinstance(members, set | list):  # otherwise the key has the wrong type
        names.update(decode(key).removeprefix(QUEUE_PREFIX) for key in members)
    return sorted(names)
