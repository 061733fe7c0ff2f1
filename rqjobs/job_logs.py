"""The log of a job, which is kept with the job: its format, and how it is read.

The log of a job is a stream of chunks. A chunk is a number of whole lines, each a list in JSON: its
time (Unix seconds), level as a number and as a name, logger, and text. `keep_log.lua` adds chunks and
drops the oldest ones. The worker's part is `worker/log_capture.py`.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import redis

from rqjobs.broker import keys, scripts
from rqjobs.broker.keys import decode
from rqjobs.broker.scripts import KEEP_LOG, READ_LOG
from rqjobs.connection import explain
from rqjobs.logs import replace_control_characters
from rqjobs.results import can_recover
from rqjobs.times import utc

log = logging.getLogger("rqjobs")
LOG_MAX_BYTES = 64 * 1024  # of one job
LINE_MAX_CHARACTERS = 8 * 1024
LOGGER_NAME_MAX_CHARACTERS = 200  # of a logger or a level
CHUNK_BYTES = 2 * 1024  # a chunk ends with the line that reaches this size
# The limits of one reading of a log. Ours are smaller; another program may have written more.
MAX_CHUNKS = 5000
READ_MAX_BYTES = 4 * LOG_MAX_BYTES
FOLLOW_RECONNECT_SECONDS = 0.5  # between two attempts of a follower
FOLLOW_BLOCK_MS = 5000  # a job that was canceled or deleted is noticed so much later
NO_MORE_LINES = (b"finished", b"failed", b"stopped", b"canceled", None)
ANSI_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True)
class LogLine:
    """One line that a job has logged or printed. `text` may have several lines: a traceback.

    `levelno`: the level as a number, as in `logging`. `attempt`: the run that logged it; the first
    is 1. `number`: its place among all lines of the job, from 0. `dropped`: the number of lines
    before this one that are not kept.
    """

    time: datetime
    level: str
    levelno: int
    logger: str
    text: str
    attempt: int
    number: int
    dropped: int


class Batch(NamedTuple):
    """Lines that are sent in one write. `number`: of the write within its run, from 1.

    `dropped`: the number of lines before them that found no room.
    """

    number: int
    dropped: int
    text: bytes


# Writing


def encode_line(created: float, levelno: int, level: str, logger: str, text: str) -> bytes:
    """A line as it is kept: of bounded length, without control characters or lone surrogates."""
    left_out = len(text) - LINE_MAX_CHARACTERS
    if left_out > 0:
        half = LINE_MAX_CHARACTERS // 2
        text = f"{text[:half]}… ({left_out:,} characters are left out) …{text[-half:]}"
    words = [clean(name[:LOGGER_NAME_MAX_CHARACTERS]) for name in (level, logger)]
    return _encode([round(created, 3), levelno, *words, clean(text)]).encode() + b"\n"


def clean(text: str) -> str:
    """`text` without the colors of a terminal, and with `�` for other control characters."""
    if text.isascii() and text.isprintable():
        return text
    return replace_control_characters(ANSI_SEQUENCE.sub("", text.replace("\r\n", "\n")))


def keep_command(job_id: str, token: str, attempt: int, batch: Batch) -> tuple[Any, ...]:
    """The command that adds a batch to the log of a job, if its run still has this token.

    Redis must have the script already.
    """
    arguments: list[Any] = [token, attempt, batch.number, batch.dropped, LOG_MAX_BYTES]
    for chunk in _chunks(batch.text):
        arguments += (chunk.count(b"\n"), chunk)
    return KEEP_LOG.call([keys.job(job_id), keys.log(job_id)], arguments)


def _chunks(text: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(text):
        end = text.find(b"\n", start + CHUNK_BYTES) + 1 or len(text)
        yield text[start:end]
        start = end


# Reading


class _Chunk(NamedTuple):
    """An entry of the stream. `end`: the number of all lines up to its last one."""

    end: int
    attempt: int
    lines: list[bytes]


def read(connection: redis.Redis, job_id: str) -> list[LogLine]:
    """The kept lines of a job, the oldest first; none if it has no log.

    Entries that another program has written, and that cannot be read, are left out.
    """
    (reply,) = scripts.read_together(connection, [_read_command(job_id, (0, 0))], READ_LOG)
    lines, _ = _lines_of(reply[3], 0)
    return lines


def lines_of(entries: Any) -> list[LogLine]:
    """The lines of entries of a log's stream, as of `XRANGE`. Those that cannot be read are left
    out.
    """
    return _lines_of(entries, 0)[0] if isinstance(entries, list) else []


def _read_command(job_id: str, after: tuple[int, int]) -> tuple[Any, ...]:
    return READ_LOG.call([keys.log(job_id)], [f"{after[0]}-{after[1]}", MAX_CHUNKS, READ_MAX_BYTES])


def follow(connection: redis.Redis, job_id: str) -> Iterator[LogLine]:
    """The lines of a job, and further ones as they come, until the job has ended or is gone.

    It waits without polling: each run that ends adds to the job's results. It outlasts an outage of
    Redis that comes after the first look.
    """
    after: tuple[int, int] = (0, 0)
    step = _Step([], after, False, None)
    has_looked, failures = False, 0
    while True:
        try:
            if step.waits_for:
                connection.xread(step.waits_for, count=1, block=FOLLOW_BLOCK_MS)
            step = _look(connection, job_id, after)
            has_looked, failures = True, 0
        except (redis.RedisError, OSError) as error:
            if not has_looked or not can_recover(error):
                raise
            if not failures:
                log.warning("following a log: Redis does not answer: %s", explain(error))
            failures += 1
            time.sleep(FOLLOW_RECONNECT_SECONDS)
            continue
        yield from step.lines
        after = step.after
        if step.is_last:
            return


class _Step(NamedTuple):
    """The result of one look at a log. `waits_for`: the streams on which the next look waits."""

    lines: list[LogLine]
    after: tuple[int, int]
    is_last: bool
    waits_for: Any


def _look(connection: redis.Redis, job_id: str, after: tuple[int, int]) -> _Step:
    """The lines behind `after`, or some of them."""
    results = keys.results(job_id)
    commands: list[tuple[Any, ...]] = [
        ("XREVRANGE", results, "+", "-", "COUNT", 1),
        ("HGET", keys.job(job_id), "status"),
        _read_command(job_id, after),
    ]
    replies = scripts.read_together(connection, commands, READ_LOG)
    newest_result, status, (has_more, newest, last, entries) = replies
    if _id_of(newest) < after:  # a new life of the id, with a log of its own
        return _Step([], (0, 0), False, None)
    lines, _ = _lines_of(entries, after[1])
    after = max(after, _id_of(last))
    if has_more == b"1":
        return _Step(lines, after, False, None)
    is_last = status in NO_MORE_LINES or isinstance(status, Exception)
    seen = "0-0"
    if isinstance(newest_result, list) and newest_result:
        seen = decode(newest_result[0][0])
    streams = {keys.log(job_id): f"{after[0]}-{after[1]}", results: seen}
    return _Step(lines, after, is_last, streams)


def _id_of(entry_id: bytes) -> tuple[int, int]:
    size, _, lines = decode(entry_id).partition("-")
    return int(size), int(lines)


def _lines_of(entries: list[Any], seen: int) -> tuple[list[LogLine], int]:
    """The lines of entries of the stream, and the number of all lines up to the last of them.

    `seen`: the number of lines before them that a reader has.
    """
    lines: list[LogLine] = []
    for entry_id, words in entries:
        try:
            chunk = _read_chunk(entry_id, words)
        except (ValueError, LookupError, TypeError):  # not ours
            continue
        number = max(chunk.end - len(chunk.lines), seen)
        for data in chunk.lines:
            line = _read_line(data, chunk.attempt, number, number - seen)
            if line:
                lines.append(line)
                seen = number + 1
            number += 1
    return lines, seen


def _read_chunk(entry_id: bytes, words: Any) -> _Chunk:
    fields = words
    if isinstance(words, list):
        fields = dict(zip(words[::2], words[1::2], strict=True))
    end = int(decode(entry_id).partition("-")[2])
    return _Chunk(end, int(fields[b"attempt"]), fields[b"lines"].splitlines())


def _read_line(data: bytes, attempt: int, number: int, dropped: int) -> LogLine | None:
    if len(data) > LOG_MAX_BYTES:  # brackets take many times their size as objects
        return None
    try:
        created, levelno, level, logger, text = json.loads(data)
        moment = utc(float(created))
        return LogLine(
            moment,
            clean(str(level))[:LOGGER_NAME_MAX_CHARACTERS],
            int(levelno),
            clean(str(logger))[:LOGGER_NAME_MAX_CHARACTERS],
            clean(str(text))[: 2 * LINE_MAX_CHARACTERS],
            attempt,
            number,
            dropped,
        )
    except (ValueError, TypeError, OverflowError, OSError, RecursionError):
        return None


def level_number(level: str | int) -> int:
    """A level of `logging`, by its number or its name in any case.

    Raises:
        ValueError: there is no such level.
    """
    if isinstance(level, int):
        return level
    number = logging.getLevelName(level.upper())
    if not isinstance(number, int):
        raise ValueError(f"{level!r} is not a level; for example INFO, WARNING or ERROR")
    return number
