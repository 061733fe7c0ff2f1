"""A client that keeps writes instead of sending them: RQ's own code says what an outcome writes.

RQ writes outside the pipelines that it is given (`Job.retry`, `ScheduledJobRegistry.schedule`,
`handle_job_failure`, the enqueueing of dependents). On a `RecordingClient` all of it becomes one
list of writes, which `settle.lua` applies in one step, or not at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import redis
from redis.client import Pipeline

READS = frozenset(
    (
        "EXISTS",
        "GET",
        "HEXISTS",
        "HGET",
        "HGETALL",
        "HKEYS",
        "HLEN",
        "HMGET",
        "INFO",
        "LINDEX",
        "LLEN",
        "LPOS",
        "LRANGE",
        "MGET",
        "PTTL",
        "SCARD",
        "SISMEMBER",
        "SMEMBERS",
        "TIME",
        "TTL",
        "TYPE",
        "XLEN",
        "XRANGE",
        "XREVRANGE",
        "ZCARD",
        "ZCOUNT",
        "ZRANGE",
        "ZRANGEBYSCORE",
        "ZREVRANGE",
        "ZSCORE",
    )
)
# The reply that a caller gets to a write that is kept; 1 to every other.
REPLIES: dict[str, Any] = {"XADD": b"0-0", "SET": True, "GET": None}


@dataclass
class Recording:
    """The writes of one outcome.

    `guard`: the pipeline that watches the keys which RQ reads; the settlement is its transaction.
    `counts_as`: the job's result for its dependents, as in `transitions.settle_arguments`.
    `error`: the error of a read. RQ catches and logs some of them.
    """

    guard: Pipeline
    writes: list[tuple[Any, ...]] = field(default_factory=list)
    counts_as: str = ""
    error: redis.RedisError | None = None

    def writes_without(self, key: str) -> list[tuple[Any, ...]]:
        """The writes to other keys than this one."""
        others = [write for write in self.writes if write[1] != key]
        return [
            tuple(word for word in write if word != key) if write[0] == "DEL" else write
            for write in others
        ]


class RecordingClient(redis.Redis):
    """Sends everything like the client that it is made from, except within `record`."""

    recording: Recording | None = None

    def __init__(self, client: redis.Redis):
        super().__init__(connection_pool=client.connection_pool)
        self.real_client = client

    @contextlib.contextmanager
    def record(self, guard: Pipeline) -> Iterator[Recording]:
        """Keep the writes of the block, and send its reads.

        Raises:
            RedisError: a read failed, even if the block has caught the error.
        """
        recording = self.recording = Recording(guard)
        try:
            yield recording
        finally:
            self.recording = None
        if recording.error:
            raise recording.error

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send the command, or keep it."""
        recording = self.recording
        if recording is None:
            return super().execute_command(*args, **options)
        name = str(args[0]).upper()
        if name in READS:
            try:
                return super().execute_command(*args, **options)
            except redis.RedisError as error:
                recording.error = error
                raise
        recording.writes.append(args)
        return REPLIES.get(name, 1)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        """A pipeline that keeps its writes within `record`."""
        if self.recording is None:
            return super().pipeline(transaction, shard_hint)
        return _RecordingPipeline(self, self.recording)


class _RecordingPipeline(Pipeline):
    """Sends its reads and keeps its writes when it is executed. Its WATCH is the guard's."""

    def __init__(self, recorder: RecordingClient, recording: Recording):
        super().__init__(recorder.connection_pool, recorder.response_callbacks, True, None)
        self.recorder = recorder
        self.recording = recording

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        return _RecordingPipeline(self.recorder, self.recording)

    def watch(self, *names: Any) -> bool:  # type: ignore[override]
        self.watching = True
        try:
            return bool(self.recording.guard.watch(*names))
        except redis.RedisError as error:
            self.recording.error = error
            raise

    def unwatch(self) -> bool:  # type: ignore[override]
        self.watching = False
        return True

    def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        return self.recorder.execute_command(*args, **options)

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        replies = [
            self.recorder.execute_command(*args, **options) for args, options in self.command_stack
        ]
        self.reset()
        return replies

    def reset(self) -> None:  # type: ignore[override]
        self.command_stack = []
        self.watching = self.explicit_transaction = False


class JobSnapshot:
    """A job's attributes, for another try of code that counts down `retries_left` and others."""

    def __init__(self, job: Any):
        self.job = job
        self.attributes = dict(vars(job))

    def restore(self) -> None:
        """Give the job the attributes that it had."""
        state = vars(self.job)
        state.clear()
        state.update(self.attributes)


@contextlib.contextmanager
def captured_webhooks(job: Any) -> Iterator[list[tuple[Any, Any]]]:
    """Keep the calls of `job.send_webhooks` in the block, as pairs of status and traceback."""
    calls: list[tuple[Any, Any]] = []

    def capture(status: Any, *, exc_string: str | None = None) -> None:
        calls.append((status, exc_string))

    job.send_webhooks = capture
    try:
        yield calls
    finally:
        del job.send_webhooks
