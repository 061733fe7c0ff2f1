"""The Lua scripts: loading and calling them. Each file in `lua/` is one atomic step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import redis
from redis.exceptions import NoScriptError, ResponseError

from rqjobs.connection import is_transient

QUEUES_PER_SCRIPT = 500  # queues that one script looks at; a longer one would hold up other clients
LUA_FOLDER = Path(__file__).parent / "lua"


class Script:
    """A script by its name. Its source is sent only if Redis does not have it yet.

    `common`, `policies`: whether it uses the functions of common.lua, and of policies.lua, which
    are then put in front.
    """

    def __init__(self, name: str, common: bool = True, policies: bool = True):
        files = [name]
        if common and policies:
            files.insert(0, "policies")
        if common:
            files.insert(0, "common")
        sources = [(LUA_FOLDER / f"{file}.lua").read_text(encoding="utf-8") for file in files]
        self.source = "\n".join(sources)
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def call(self, keys: list[str], args: list[Any]) -> tuple[Any, ...]:
        """The script's command, for a pipeline. Redis must have the script already."""
        return ("EVALSHA", self.sha, len(keys), *keys, *args)

    def run(self, connection: redis.Redis, keys: list[str], args: list[Any]) -> Any:
        """Call the script and return its reply."""
        try:
            return connection.execute_command(*self.call(keys, args))
        except NoScriptError:  # nothing was run, so this is not a repetition
            return connection.execute_command("EVAL", self.source, len(keys), *keys, *args)


def read_together(
    connection: redis.Redis, commands: Iterable[tuple[Any, ...]], *scripts: Script
) -> list[Any]:
    """The replies to reading `commands`, in one round trip.

    A key of the wrong type gives its error as the reply. Other errors are raised. `scripts`: the
    scripts that the commands call; they are loaded if Redis does not have them.
    """
    commands = list(commands)
    with connection.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        replies = pipe.execute(raise_on_error=False)
    if scripts and any(isinstance(reply, NoScriptError) for reply in replies):
        for script in scripts:
            connection.script_load(script.source)
        return read_together(connection, commands)
    for reply in replies:
        if isinstance(reply, Exception) and not is_wrong_type(reply):
            raise reply
    return replies


def is_wrong_type(error: Exception) -> bool:
    """Whether Redis refused a command because the key has another type: it holds foreign data."""
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)


def in_chunks(queues: list[str]) -> list[list[str]]:
    """`queues` in portions of `QUEUES_PER_SCRIPT`, one for each call of a script."""
    starts = range(0, len(queues), QUEUES_PER_SCRIPT)
    return [queues[start : start + QUEUES_PER_SCRIPT] for start in starts]


def redis_time(connection: redis.Redis) -> float:
    """The Unix time by Redis's clock, which decides about leases and due times."""
    seconds, microseconds = connection.time()
    return float(seconds + microseconds / 1e6)


def load_scripts(client: redis.Redis) -> None:
    """Load the worker's scripts into Redis. A transient error is ignored: the next command meets
    it.
    """
    try:
        for script in WORKER_SCRIPTS:
            client.script_load(script.source)
    except Exception as error:
        if not is_transient(error):
            raise


# Transitions of a job.
ENQUEUE = Script("enqueue")
ENQUEUE_PLAIN = Script("enqueue", policies=False)  # of new jobs without policies
CLAIM = Script("claim")
SETTLE = Script("settle")
SETTLE_SUCCESS = Script("settle_success", policies=False)
SETTLE_POLICY_SUCCESS = Script("settle_success")  # of a job with policies
RELEASE = Script("release")
RECLAIM = Script("reclaim")
RECOVER = Script("recover")
REQUEUE = Script("requeue")
PROMOTE_DUE = Script("promote_due")
ENQUEUE_DEPENDENTS = Script("enqueue_dependents")
CHANGE_DELAYED = Script("change_delayed")
DELETE = Script("delete")
FOLLOW_FAILURE = Script("follow_failure")
TRIM_FAILED = Script("trim_failed")
DELETE_FAILED = Script("delete_failed")
DROP_UNIQUE_KEYS = Script("drop_unique_keys")
SAVE_FIELDS = Script("save_fields", common=False)
WAKE_DUE = Script("wake_due")
PARK_PAUSED = Script("park_paused")
UNPARK_PAUSED = Script("unpark_paused")
WORKER_SCRIPTS = (
    CLAIM,
    SETTLE_SUCCESS,
    SETTLE_POLICY_SUCCESS,
    SETTLE,
    RELEASE,
    RECLAIM,
    PARK_PAUSED,
)
CHECK_WAITING = Script("check_waiting")

# Schedules.
RUN_SCHEDULE = Script("run_schedule")
STORE_SCHEDULE = Script("store_schedule", common=False)
NOTE_OUTCOME = Script("note_outcome", common=False)
JOB_OUTCOMES = Script("job_outcomes", policies=False)

# Workers.
RENEW_LEASE = Script("renew_lease", common=False)
REGISTER_HORSE = Script("register_horse", common=False)
BEGIN_SWEEP = Script("begin_sweep", common=False)
TAKE_LOCKS = Script("take_locks", common=False)

# Keys of the wrong type.
SET_ASIDE = Script("set_aside", common=False)
CHECK_FAILURE_GROUP = Script("check_failure_group", policies=False)
REMOVE_DANGLING = Script("remove_dangling", common=False)

# Logins to the pages.
TRY_LOGIN = Script("try_login", common=False)
LOG_IN = Script("log_in", common=False)

# Reading only.
BUSY_QUEUES = Script("busy_queues", common=False)
COUNT_PLACES = Script("count_places", policies=False)
FAILED_JOBS = Script("failed_jobs", policies=False)
UNGROUPED_FAILURES = Script("ungrouped_failures", policies=False)
FIRST_DUE = Script("first_due", policies=False)
NEWEST_JOBS = Script("newest_jobs", policies=False)
SCAN_JOBS = Script("scan_jobs", policies=False)
