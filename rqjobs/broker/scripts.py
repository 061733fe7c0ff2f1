"""The Lua scripts: how they are loaded and called. Each file in `lua/` is one step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import redis
from redis.exceptions import (
    NoScriptError,
    ResponseError,
)

from rqjobs.connection import is_transient

QUEUES_PER_SCRIPT = 500  # names of queues that one script looks at


LUA_FOLDER = Path(__file__).parent / "lua"


class Script:
    """A script of ours by its name, sent whole only when Redis does not know it yet."""

    def __init__(self, name: str, common: bool = True):
        parts = ["common", name] if common else [name]
        self.source = "\n".join(
            (LUA_FOLDER / f"{part}.lua").read_text(encoding="utf-8") for part in parts
        )
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def call(self, keys: list[str], args: list[Any]) -> tuple[Any, ...]:
        """The command that runs it, for a pipeline; `load` it first."""
        return ("EVALSHA", self.sha, len(keys), *keys, *args)

    def run(self, connection: redis.Redis, keys: list[str], args: list[Any]) -> Any:
        try:
            return connection.execute_command(*self.call(keys, args))
        except NoScriptError:  # nothing was run, so this is no second try
            return connection.execute_command("EVAL", self.source, len(keys), *keys, *args)


def read_together(
    connection: redis.Redis, commands: Iterable[tuple[Any, ...]], *scripts: Script
) -> list[Any]:
    """The replies to `commands`, which only read, in one round trip; where a key is of the wrong type, that error.

    `scripts`: those that they call, to be loaded if Redis does not know them.
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
    """Whether a key is of another type than it should: somebody else wrote there."""
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)


def in_chunks(names: list[str]) -> list[list[str]]:
    """Names of queues in portions for one script each: it holds up everybody else in Redis."""
    return [
        names[start : start + QUEUES_PER_SCRIPT]
        for start in range(0, len(names), QUEUES_PER_SCRIPT)
    ]


def redis_time(connection: redis.Redis) -> float:
    """Redis's clock, in Unix seconds: the one by which everything is due."""
    seconds, micro = connection.time()
    return float(seconds + micro / 1e6)


def load_scripts(client: redis.Redis) -> None:
    """Make Redis know our scripts, unless it is away or refuses for now: the next try says so again."""
    try:
        for script in (CLAIM, SETTLE_SUCCESS, SETTLE, RELEASE, RECLAIM):
            client.script_load(script.source)
    except Exception as error:
        if not is_transient(error):
            raise


# Moves of a job.
ENQUEUE = Script("enqueue")
CLAIM = Script("claim")
SETTLE = Script("settle")
SETTLE_SUCCESS = Script("settle_success")
RELEASE = Script("release")
RECLAIM = Script("reclaim")
RECOVER = Script("recover")
REQUEUE = Script("requeue")
PROMOTE_DUE = Script("promote_due")
ENQUEUE_DEPENDENTS = Script("enqueue_dependents")
CHANGE_DELAYED = Script("change_delayed")
DELETE = Script("delete", common=False)
SAVE_FIELDS = Script("save_fields", common=False)

# Schedules.
RUN_SCHEDULE = Script("run_schedule")
STORE_SCHEDULE = Script("store_schedule", common=False)
NOTE_OUTCOME = Script("note_outcome", common=False)
JOB_OUTCOMES = Script("job_outcomes")

# Workers.
RENEW_LEASE = Script("renew_lease", common=False)
REGISTER_HORSE = Script("register_horse", common=False)
BEGIN_SWEEP = Script("begin_sweep", common=False)
TAKE_LOCKS = Script("take_locks", common=False)

# Odd keys.
SET_ASIDE = Script("set_aside", common=False)
REMOVE_DANGLING = Script("remove_dangling", common=False)

# Logins to the pages.
TRY_LOGIN = Script("try_login", common=False)
LOG_IN = Script("log_in", common=False)

# These only read.
BUSY_QUEUES = Script("busy_queues", common=False)
COUNT_PLACES = Script("count_places")
FAILED_JOBS = Script("failed_jobs")
FIRST_DUE = Script("first_due")
NEWEST_JOBS = Script("newest_jobs")
SCAN_JOBS = Script("scan_jobs")
