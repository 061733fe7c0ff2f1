"""A client that keeps writes instead of sending them, so that RQ's own code can say what an outcome
writes.

RQ writes outside the pipelines that it is given (`Job.retry`, `ScheduledJobRegistry.schedule`,
`handle_job_failure` executes twice, dependents in a third). Run on a `Recorder`, all of it becomes
one list of writes, which `settle` applies in one step, or not at all.
"""

from __future__ import annotations

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
REPLIES: dict[str, Any] = {
    "XADD": b"0-0",
    "SET": True,
    "GET": None,
}  # to a kept write; 1 for all others


class RecordingClient(redis.Redis):
    """Sends everything like the client that it is made from, until `writes` is a list: then writes
    go in there.

    `guard` is the pipeline whose WATCH protects what was read meanwhile; `settle` runs inside its
    transaction. `counts_as` is what the job is then to those that wait for it, as
    `ledger.settle_arguments` takes it.
    """

    def __init__(self, client: redis.Redis):
        super().__init__(connection_pool=client.connection_pool)
        self.plain = client
        self.writes: list[tuple[Any, ...]] | None = None
        self.guard: Pipeline | None = None
        self.counts_as = ""
        self.trouble: redis.RedisError | None = None  # of a read; RQ catches and logs some of them

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if self.writes is None:
            return super().execute_command(*args, **options)
        if str(args[0]).upper() in READS:
            try:
                return super().execute_command(*args, **options)
            except redis.RedisError as error:
                self.trouble = error
                raise
        self.writes.append(args)
        return REPLIES.get(str(args[0]).upper(), 1)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        if self.writes is None:
            return super().pipeline(transaction, shard_hint)
        return _Recording(self)


class _Recording(Pipeline):
    """A pipeline of a recording client: its writes are kept when it is executed, its reads are
    sent.
    """

    def __init__(self, recorder: RecordingClient):
        super().__init__(recorder.connection_pool, recorder.response_callbacks, True, None)
        self.recorder = recorder

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        return _Recording(self.recorder)

    def watch(self, *names: Any) -> bool:  # type: ignore[override]
        assert self.recorder.guard is not None
        self.watching = True
        try:
            return bool(self.recorder.guard.watch(*names))
        except redis.RedisError as error:
            self.recorder.trouble = error
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
