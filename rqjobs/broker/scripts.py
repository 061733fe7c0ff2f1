"""The Lua scripts: loading and calling them. Each file in `lua/` is one atomic step."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import redis
from redis.exceptions import NoPermissionError, NoScriptError, ResponseError

from rqjobs.broker import read_ahead
from rqjobs.broker.keys import decode
from rqjobs.connection import is_transient

QUEUES_PER_SCRIPT = 500  # queues that one script looks at; a longer one would hold up other clients
LUA_FOLDER = Path(__file__).parent / "lua"
COMMENT_LINE = re.compile(r"^\s*--.*\n", re.MULTILINE)
DEFINITION = re.compile(r"^(?:local function|function|local) +(\w+(?:, *\w+)*)", re.MULTILINE)
WORD = re.compile(r"\w+")
LOCAL = re.compile(r"^local +(function +)?", re.MULTILINE)


class _Definition(NamedTuple):
    """A function, or some local variables, of a Lua file that scripts share."""

    names: frozenset[str]
    words: frozenset[str]  # all words of its source
    source: str

    @property
    def only_declares(self) -> bool:
        """Whether the names are defined elsewhere."""
        return "=" not in self.source and "function" not in self.source


def _read_lua(file: str) -> str:
    """A Lua file without the lines that are comments."""
    return COMMENT_LINE.sub("", (LUA_FOLDER / f"{file}.lua").read_text(encoding="utf-8"))


@functools.cache
def _definitions(file: str) -> list[_Definition]:
    """The definitions of a file, in order. Each begins at the start of a line."""
    source = _read_lua(file)
    starts = [*DEFINITION.finditer(source)]
    ends = [*(match.start() for match in starts[1:]), len(source)]
    found = []
    for match, end in zip(starts, ends, strict=True):
        text = source[match.start() : end]
        found.append(_Definition(_words(match[1]), _words(text), text))
    return found


def _words(source: str) -> frozenset[str]:
    return frozenset(WORD.findall(source))


def _used(definitions: list[_Definition], source: str) -> list[_Definition]:
    """The definitions that a script uses, directly or through others, in their order."""
    words, used = set(_words(source)), []
    missing = definitions
    while added := [one for one in missing if one.names & words]:
        used += added
        missing = [one for one in missing if one not in added]
        words.update(*(one.words for one in added))
    return [one for one in definitions if one in used]


def _define_rare(definitions: list[_Definition], declared: frozenset[str]) -> str:
    """The Lua function `define_rare`, which makes these definitions when it is first called."""
    names = frozenset().union(*(one.names for one in definitions)) - declared
    body = "".join(LOCAL.sub(lambda match: match[1] or "", one.source) for one in definitions)
    return (
        f"local is_defined, {', '.join(sorted(names))}\n"
        f"local function define_rare()\n"
        f"if is_defined then return end\n"
        f"is_defined = true\n"
        f"{body}end\n"
    )


class Script:
    """A script by its name. Its source is sent only if Redis does not have it yet.

    In front of it are the functions of common.lua that it uses, and no others: each call of a
    script defines all of its functions, which takes a tenth of a microsecond for each.

    Args:
        policies: whether the functions of policies.lua are in front of it, too.
        rare: functions that most calls do not need. The script calls `define_rare()` before it
            uses one. Functions that only these use are defined then as well.
    """

    def __init__(self, name: str, policies: bool = True, rare: frozenset[str] = frozenset()):
        # The file is read now, and not at the first call: by then another version of the package
        # may be installed. To put the source together takes longer, and few processes use all
        # scripts.
        self._own = _read_lua(name)
        self._shared = _definitions("common") + (_definitions("policies") if policies else [])
        self._rare = rare

    @functools.cached_property
    def source(self) -> str:
        """The script with the functions that it uses."""
        rarely = [one for one in self._shared if one.names & self._rare and not one.only_declares]
        usual = _used([one for one in self._shared if one not in rarely], self._own)
        rest = [one for one in _used(self._shared, self._own) if one not in usual]
        prefix = "".join(one.source for one in usual)
        if rest:
            declared = frozenset().union(*(one.names for one in usual))
            prefix += _define_rare(rest, declared)
        return prefix + self._own

    @functools.cached_property
    def sha(self) -> str:
        """The name that Redis gives to the source."""
        return hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def call(self, keys: list[str], args: list[Any]) -> tuple[Any, ...]:
        """The script's command, for a pipeline. Redis must have the script already."""
        return ("EVALSHA", self.sha, len(keys), *keys, *args)

    def run(self, connection: redis.Redis, keys: list[str], args: list[Any]) -> Any:
        """Call the script and return its reply."""
        try:
            return connection.execute_command(*self.call(keys, args))
        except NoScriptError:  # nothing was run, so this is not a repetition
            return connection.execute_command("EVAL", self.source, len(keys), *keys, *args)


def replies_together(connection: redis.Redis, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
    """The replies to reading `commands`, errors among them, in one round trip.

    An update of an open page may have them already (`read_ahead.py`).
    """

    def send(commands: list[tuple[Any, ...]]) -> list[Any]:
        with connection.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return pipe.execute(raise_on_error=False)

    ahead = read_ahead.current.get()
    if ahead is None or ahead.connection is not connection:
        return send([*commands])
    return ahead.replies([*commands], send)


def read_together(
    connection: redis.Redis, commands: Iterable[tuple[Any, ...]], *scripts: Script
) -> list[Any]:
    """The replies to reading `commands`, in one round trip.

    A key of the wrong type gives its error as the reply, and so does INFO if the Redis user may not
    call it. Other errors are raised. `scripts`: the scripts that the commands call; they are loaded
    if Redis does not have them.
    """
    commands = list(commands)
    replies = replies_together(connection, commands)
    if scripts and any(isinstance(reply, NoScriptError) for reply in replies):
        for script in scripts:
            connection.script_load(script.source)
        return read_together(connection, commands)
    for command, reply in zip(commands, replies, strict=True):
        if isinstance(reply, NoPermissionError) and command[0] == "INFO":
            continue
        if isinstance(reply, Exception) and not is_wrong_type(reply):
            raise reply
    return replies


def read_scores(reply: Any) -> list[tuple[str, float]]:
    """The members with their scores in a reply `WITHSCORES`; none if the reply is an error.

    The reply is flat with the older protocol of Redis.
    """
    if not isinstance(reply, list):
        return []
    pairs = reply
    if reply and not isinstance(reply[0], list | tuple):
        pairs = list(zip(reply[::2], reply[1::2], strict=True))
    return [(decode(member), float(score)) for member, score in pairs]


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
    """Load the worker's scripts into Redis, in their order. A transient error is ignored: the next
    command meets it.
    """
    try:
        for script in WORKER_SCRIPTS:
            client.script_load(script.source)
    except Exception as error:
        if not is_transient(error):
            raise


# Transitions of a job.
POLICY_FUNCTIONS = frozenset().union(*(one.names for one in _definitions("policies")))
DEPENDENTS = frozenset({"enqueue_dependents"})
ENQUEUE = Script("enqueue")
ENQUEUE_PLAIN = Script("enqueue", policies=False)  # of new jobs without policies
CLAIM = Script("claim", rare=POLICY_FUNCTIONS)
SETTLE = Script("settle")
SETTLE_SUCCESS = Script("settle_success", policies=False, rare=DEPENDENTS)
SETTLE_POLICY_SUCCESS = Script("settle_success", rare=DEPENDENTS)  # of a job with policies
RELEASE = Script("release")
INTERRUPT = Script("interrupt")
KEEP_CURSOR = Script("keep_cursor")
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
EMPTY_QUEUE = Script("empty_queue")
IGNORE_GROUP = Script("ignore_group", policies=False)
DELETE_ENDED = Script("delete_ended")
CANCEL_QUEUED = Script("cancel_queued")
DROP_UNIQUE_KEYS = Script("drop_unique_keys")
SAVE_FIELDS = Script("save_fields")
KEEP_LOG = Script("keep_log")
DROP_LOGS = Script("drop_logs")
WAKE_DUE = Script("wake_due")
PARK_PAUSED = Script("park_paused")
UNPARK_PAUSED = Script("unpark_paused")
RELEASE_FLOW = Script("release_flow")
DROP_FLOW = Script("drop_flow", policies=False)
CANCEL_FLOW = Script("cancel_flow", policies=False)
ADD_METRICS = Script("add_metrics", policies=False)
FORGET_FLOWS = Script("forget_flows", policies=False)
WORKER_SCRIPTS = (
    # The first: a worker sends it in front of an outcome, and would not notice that Redis has only
    # the script of the outcome.
    KEEP_LOG,
    CLAIM,
    SETTLE_SUCCESS,
    SETTLE_POLICY_SUCCESS,
    SETTLE,
    RELEASE,
    INTERRUPT,
    RECLAIM,
    PARK_PAUSED,
    ADD_METRICS,
)
CHECK_WAITING = Script("check_waiting")
CHECK_DEFERRED = Script("check_deferred", policies=False)
RESTORE_WAITING = Script("restore_waiting")

# Alerts.
UPDATE_ALERTS = Script("update_alerts", policies=False)

# Schedules.
RUN_SCHEDULE = Script("run_schedule")
STORE_SCHEDULE = Script("store_schedule")
NOTE_OUTCOME = Script("note_outcome")
JOB_OUTCOMES = Script("job_outcomes")

# Workers.
RENEW_LEASE = Script("renew_lease")
REGISTER_HORSE = Script("register_horse")
BEGIN_SWEEP = Script("begin_sweep")
ROLL_UP_COUNTS = Script("roll_up_counts", policies=False)
TAKE_LOCKS = Script("take_locks")

# Keys of the wrong type.
SET_ASIDE = Script("set_aside")
CHECK_FAILURE_GROUP = Script("check_failure_group")
REMOVE_DANGLING = Script("remove_dangling")

# Logins to the pages.
TRY_LOGIN = Script("try_login")
LOG_IN = Script("log_in")

# Activity.
RECORD_ACTIVITY = Script("record_activity", policies=False)
COUNT_REFUSED_LOGIN = Script("count_refused_login", policies=False)

# Reading only.
BUSY_QUEUES = Script("busy_queues")
COUNT_PLACES = Script("count_places")
FIND_GROUPS = Script("find_groups", policies=False)
COUNT_MEMBERS = Script("count_members", policies=False)
FAILED_JOBS = Script("failed_jobs")
UNGROUPED_FAILURES = Script("ungrouped_failures")
FIND_BLOCKER = Script("find_blocker", policies=False)
FIRST_DUE = Script("first_due")
FLOW_STATES = Script("flow_states", policies=False)
INSPECT_JOB = Script("inspect_job", policies=False)
LIST_FLOWS = Script("list_flows", policies=False)
NEWEST_JOBS = Script("newest_jobs")
READ_LOG = Script("read_log", policies=False)
SCAN_JOBS = Script("scan_jobs")
SCAN_STATUSES = Script("scan_statuses", policies=False)
SEARCH_JOBS = Script("search_jobs", policies=False)
