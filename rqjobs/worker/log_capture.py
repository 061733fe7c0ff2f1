"""Captures what a job logs and prints, and sends it to Redis while the job runs.

A record costs no round trip. A thread sends the new lines a tenth of a second after the first of
them. The last ones go with the job's outcome. A job that logs nothing sends nothing.

Records are taken from `Logger.callHandlers`, and not by a handler of the root logger. So
`logging.basicConfig` still finds no handler there, warnings still go to stderr, and no
`dictConfig` removes it.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import redis
from redis.exceptions import NoScriptError
from rq.timeouts import BaseTimeoutException

from rqjobs import config, connection, hiding, texts
from rqjobs.broker.keys import decode
from rqjobs.broker.scripts import KEEP_LOG
from rqjobs.broker.transitions import Claim
from rqjobs.connection import is_transient
from rqjobs.job_logs import LINE_MAX_CHARACTERS, encode_line, keep_command
from rqjobs.policies.retries import History
from rqjobs.worker.log_buffer import LogBuffer

FLUSH_SECONDS = 0.1  # from the first line that was not sent to the write
RESEND_SECONDS = 1.0  # after a write that Redis did not take
SEND_TIMEOUT_SECONDS = 5
PRINT_MAX_CHARACTERS = 256 * 1024  # of one write to stdout
PRINT_LEVEL = "PRINT"
# The worker's own loggers.
WORKER_LOGGERS = re.compile(r"rq(\..*)?|rqjobs(\.web)?")

# The claim of the job for which a context works. Claims are compared by identity.
_claim_of_context: contextvars.ContextVar[Claim | None]
_claim_of_context = contextvars.ContextVar("claim", default=None)
CLAIM_OF_THREAD = "_rqjobs_claim"  # the attribute of a thread that a job has started


def _works_for(claim: Claim) -> bool:
    """Whether this thread works for the job of a claim.

    It has the job's context, or was started during the job. A thread that Python does not know may
    be anybody's.
    """
    of_context = _claim_of_context.get()
    if of_context is not None:
        return of_context is claim
    return vars(threading.current_thread()).get(CLAIM_OF_THREAD) is claim


def _attempt(claim: Claim) -> int:
    """The number of a run as far as the job's hash tells; the first is 1."""
    fields = claim.fields
    counted = History.read(decode(fields.get(b"rqjobs_retries") or b"")).retries
    with contextlib.suppress(ValueError):
        counted = max(counted, int(fields.get(b"number_of_retries") or 0))
    return 1 + counted + len(re.findall(rb"[0-9]+", fields.get(b"rqjobs_crashes") or b""))


class LogCapture:
    """Keeps the lines of the job that the horse runs. Its methods never raise an error of a line."""

    def __init__(self, client: redis.Redis, buffer: LogBuffer):
        settings = config.current()
        self.level = logging.getLevelName(settings.job_log_level)
        self.keeps_prints = settings.job_log_prints == "on"
        self.buffer = buffer
        self.claim: Claim | None = None  # of the job that runs
        self.secrets: list[str] = []  # texts that its lines do not show
        self._has_lines = False  # of that job
        # The run that has ended last, and the commands that keep its last lines.
        self._last: tuple[Claim | None, tuple[tuple[Any, ...], ...]] = None, ()
        self._prints: PrintStream | None = None
        self._sender = _Sender(client)
        self._is_started = False
        self._renew_locks()

    def _renew_locks(self) -> None:
        self._lock = threading.RLock()  # a signal handler may log while its thread has it
        self._send_lock = threading.Lock()
        self._unsent: tuple[Any, ...] | None = None  # the command of the buffer's closed half
        # No Event: a time limit that is raised within its code would leave it locked.
        self._wakeups: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_woken = False

    def install(self) -> None:
        """Take the records of all loggers of this process from now on.

        A program that has not set up `logging` gets the level of the root logger that is kept, so
        that `info` is not dropped before it arrives here. Nothing else is printed because of that.
        """
        call_handlers = logging.Logger.callHandlers

        def keep_and_call_handlers(logger: logging.Logger, record: logging.LogRecord) -> None:
            self.keep(record)
            call_handlers(logger, record)

        logging.Logger.callHandlers = keep_and_call_handlers  # type: ignore[assignment,method-assign]
        start = threading.Thread.start

        def note_claim_and_start(thread: threading.Thread) -> None:
            claim = self.claim
            if claim is not None and _works_for(claim):
                vars(thread)[CLAIM_OF_THREAD] = claim
            start(thread)

        threading.Thread.start = note_claim_and_start  # type: ignore[assignment,method-assign]
        root = logging.getLogger()
        if root.level == logging.WARNING and not root.handlers:
            root.setLevel(min(self.level, logging.WARNING))
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """In a process that a job has forked: keep nothing."""
        self.claim = None
        self._renew_locks()

    # Of a job

    def begin(self, claim: Claim, secrets: list[str]) -> None:
        """Keep the lines of this run from now on, with `hidden` for each of `secrets`."""
        self.secrets = secrets
        _claim_of_context.set(claim)
        self.claim = claim
        if self.keeps_prints and sys.stdout is not None:
            self._prints = PrintStream(sys.stdout, self._keep_print, claim)
            sys.stdout = self._prints  # the horse restores it after the job

    def last_commands(self, claim: Claim) -> tuple[tuple[Any, ...], ...]:
        """The commands that keep the rest of the lines of this run. They are sent before its outcome.

        Later lines are not kept. Another call for the same run returns the same commands.
        """
        if claim is self.claim:
            self._last = claim, self._close(claim)
        ended, commands = self._last
        return commands if ended is claim else ()

    def _close(self, claim: Claim) -> tuple[tuple[Any, ...], ...]:
        if self._prints:
            self._prints.end_lines()
            self._prints = None
        self.claim = None
        if not self._has_lines:
            return ()
        with self._send_lock, self._lock:
            commands = [self._unsent] if self._unsent else []
            rest = self.buffer.rest()
            if rest:
                commands.append(_command(claim, rest))
            self._unsent = None
            self._has_lines = False
            return tuple(commands)

    def end(self) -> None:
        """Keep no more lines. Those that were not sent with the outcome are dropped."""
        self.claim = None
        self._prints = None
        self._has_lines = False

    # Lines

    def keep(self, record: logging.LogRecord) -> None:
        """Keep a record if it is one of the job."""
        claim = self.claim
        if claim is None or record.levelno < self.level or WORKER_LOGGERS.fullmatch(record.name):
            return
        try:
            if _works_for(claim):
                words = (record.created, record.levelno, record.levelname, record.name)
                text = hiding.mask(_text_of(record), self.secrets)
                self._add(claim, encode_line(*words, text))
        except BaseTimeoutException:  # the job's time limit
            raise
        except BaseException:  # of a damaged record: its line is lost
            return

    def _keep_print(self, claim: Claim, text: str) -> None:
        if claim is self.claim and _works_for(claim):
            text = hiding.mask(text, self.secrets)
            self._add(claim, encode_line(time.time(), logging.INFO, PRINT_LEVEL, "stdout", text))

    def _add(self, claim: Claim, line: bytes) -> None:
        with self._lock:
            if claim is not self.claim:
                return
            if not self._has_lines:
                self.buffer.begin(claim.token, _attempt(claim))
                self._has_lines = True
            self.buffer.add(line)
        if not self._is_started:
            self._is_started = True
            threading.Thread(target=self._send_regularly, name="rqjobs-log", daemon=True).start()
        self._wake_sender()

    def _wake_sender(self) -> None:
        if not self._is_woken:
            self._is_woken = True
            self._wakeups.put(None)

    # Sending

    def _send_regularly(self) -> None:
        while True:
            self._wakeups.get()
            time.sleep(FLUSH_SECONDS)
            self._is_woken = False
            if not self.flush():
                time.sleep(RESEND_SECONDS)
                self._wake_sender()

    def flush(self) -> bool:
        """Send the lines so far. False if Redis does not take them now."""
        with self._send_lock:
            if self._unsent is None:
                with self._lock:
                    claim = self.claim
                    batch = self.buffer.take() if claim and self._has_lines else None
                    if claim is None or batch is None:
                        return True
                    self._unsent = _command(claim, batch)
            if not self._sender.send(self._unsent):
                return False
            self._unsent = None
            with self._lock:
                self.buffer.sent()
            return True


def _command(claim: Claim, batch: Any) -> tuple[Any, ...]:
    return keep_command(claim.job_id, claim.token, _attempt(claim), batch)


class PrintStream:
    """The standard output of one job: what is written goes to the real stream, and is kept as lines.

    It has all other methods and attributes of the real stream.
    """

    def __init__(self, stream: Any, keep: Callable[[Claim, str], None], claim: Claim):
        self._stream = stream
        self._keep = keep
        self._claim = claim
        self._begun: dict[int, str] = {}  # thread -> the beginning of its line

    def write(self, text: str) -> Any:
        """Write to the real stream, and keep the complete lines."""
        written = self._stream.write(text)
        try:
            self._keep_lines(text)
        except BaseTimeoutException:
            raise
        except BaseException:  # such a line is lost
            pass
        return written

    def _keep_lines(self, text: str) -> None:
        left_out = len(text) - PRINT_MAX_CHARACTERS
        if left_out > 0:
            text = f"[{left_out:,} characters are left out here]\n{text[left_out:]}"
        thread = threading.get_ident()
        *lines, begun = (self._begun.pop(thread, "") + text).split("\n")
        for line in lines:
            self._keep(self._claim, _last_state_of(line))
        if begun:
            self._begun[thread] = begun[-LINE_MAX_CHARACTERS:]

    def end_lines(self) -> None:
        """Keep the lines that have no end yet."""
        for thread in list(self._begun):
            self._keep(self._claim, _last_state_of(self._begun.pop(thread, "")))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _last_state_of(line: str) -> str:
    """What a terminal shows of a line: a progress bar writes it again after each `\\r`."""
    return line.rstrip("\r").rpartition("\r")[2]


def _text_of(record: logging.LogRecord) -> str:
    """The message of a record with its traceback, whatever its arguments are."""
    try:
        text = str(record.getMessage())
    except BaseTimeoutException:
        raise
    except BaseException as error:
        text = f"{_raw_message(record)} (its arguments cannot be formatted: {_class_of(error)})"
    if record.exc_info and isinstance(record.exc_info, tuple):
        text += "\n" + "".join(texts.format_exception(*record.exc_info)).rstrip("\n")
    if isinstance(record.stack_info, str):
        text += "\n" + record.stack_info
    return text


def _raw_message(record: logging.LogRecord) -> str:
    if isinstance(record.msg, str):
        return record.msg
    return f"a {texts.class_name(type(record.msg))}"


def _class_of(error: BaseException) -> str:
    return texts.class_name(type(error))


class _Sender:
    """One connection for the writes of the sending thread."""

    def __init__(self, client: redis.Redis):
        self.client = client
        self.connection: Any = None

    def send(self, command: tuple[Any, ...]) -> bool:
        """Send a write; False if Redis cannot take it now. Never raises.

        A write that Redis refuses for good is given up.
        """
        try:
            try:
                self._call(command)
            except NoScriptError:
                self._call(("EVAL", KEEP_LOG.source, *command[2:]))
            return True
        except redis.ResponseError as error:
            return not is_transient(error)
        except Exception:
            self.close()
            return False

    def _call(self, command: tuple[Any, ...]) -> None:
        if self.connection is None:
            self.connection = connection.dedicated_connection(self.client, SEND_TIMEOUT_SECONDS)
        self.connection.send_command(*command, check_health=False)
        self.connection.read_response()

    def close(self) -> None:
        """Drop the connection."""
        if self.connection is not None:
            with contextlib.suppress(Exception):
                self.connection.disconnect()
        self.connection = None
