"""Job functions with values that raise when other code uses them."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading

from rq import get_current_job

import rqjobs


class Meta(type):
    @property
    def __module__(cls):
        raise RuntimeError("no module")

    @property
    def __name__(cls):
        raise RuntimeError("no name")


def nameless(*bases):
    return Meta("Nameless", bases, {})


class Unprintable:
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __format__ = __str__


class Texts:
    def __str__(self):
        return 5

    __repr__ = __str__


class Quits:
    def __str__(self):
        raise SystemExit("no text")

    __repr__ = __eq__ = __bool__ = __hash__ = __reduce__ = __str__


class Liar:
    @property
    def __class__(self):
        raise KeyboardInterrupt("no class")


class Leaver:
    def __del__(self):
        raise SystemExit("no end")


class Endless(list):
    def __iter__(self):
        raise SystemExit("no items")


def deep(levels=5000):
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


async def coroutine():
    return 1


async def told(*given):
    raise RuntimeError("this ran")


async def agenerator():
    yield 1


VALUES = {
    "unprintable": Unprintable,
    "texts": Texts,
    "quits": Quits,
    "liar": Liar,
    "leaver": Leaver,
    "endless": Endless,
    "nameless": lambda: nameless()(),
    "nameless class": nameless,
    "huge number": lambda: 7**6000,
    "deep": deep,
    "surrogate": lambda: "\ud800 and \udcff",
    "object": object,
    "lock": threading.Lock,
    "module": lambda: sys,
    "function": lambda: deep,
    "keys": lambda: {Quits: 1, object(): 2},
    "bytes": lambda: memoryview(b"\xff"),
    "exception": lambda: ValueError(Unprintable()),
    "plain": lambda: {"a": [1, "b"]},
    "none": lambda: None,
}
UNRUN = {
    "generator": lambda: (number for number in ()),
    "coroutine": lambda: coroutine(),
    "map": lambda: map(str, ()),
    "agenerator": lambda: agenerator(),
}


class Odd(Exception):
    __module__ = 5  # type: ignore[assignment]


class OddText(Exception):
    def __str__(self):
        return Unprintable()

    @property
    def __notes__(self):
        raise SystemExit("no notes")


def cyclic():
    error, cause = ValueError("first"), KeyError("second")
    error.__cause__, cause.__cause__ = cause, error
    return error


def chain(length=2000):
    error = ValueError("first")
    for _ in range(length):
        new = ValueError("next")
        new.__context__, error = error, new
    return error


def group(levels=1500):
    error = ValueError("inner")
    for _ in range(levels if sys.version_info >= (3, 11) else 0):
        error = ExceptionGroup("outer", [error])  # noqa: F821
    return error


def syntax():
    error = SyntaxError("wrong")
    error.lineno, error.offset, error.text, error.filename = "x", object(), 5, 7
    return error


ERRORS = {
    "odd module": Odd,
    "odd text": OddText,
    "nameless": lambda: nameless(Exception)(),
    "cyclic": cyclic,
    "chain": chain,
    "group": group,
    "syntax": syntax,
    "surrogate": lambda: ValueError("\ud800 \udcff"),
    "long": lambda: ValueError("x" * 1_000_000),
    "unprintable": lambda: ValueError(Unprintable()),
    "quits": lambda: ValueError(Quits()),
    "exit": lambda: SystemExit(3),
    "interrupt": KeyboardInterrupt,
    "generator exit": GeneratorExit,
    "canceled": asyncio.CancelledError,
    "stop": StopIteration,
    "base": lambda: BaseException(Unprintable()),
}


class Raises(logging.Handler):
    def emit(self, record):
        raise SystemExit("no log")


def give(kind: str):
    return (VALUES | UNRUN)[kind]()


async def give_later(kind: str):
    return give(kind)


def throw(kind: str):
    raise ERRORS[kind]()


def put(kind: str, save: bool = False):
    """Put the value into the job's meta.

    The end of the job writes the meta, if nothing did before.
    """
    job = get_current_job()
    job.meta["odd"] = VALUES[kind]()
    if save:
        job.save_meta()
    raise ValueError("after the meta")


def log(kind: str):
    logging.getLogger("rq.worker").error("%s %d", VALUES[kind](), VALUES[kind]())
    logging.getLogger("rq.worker").error(VALUES[kind]())


def rename(kind: str):
    get_current_job().description = VALUES[kind]()


def break_logs():
    for name in ("rq.worker", "rqjobs", ""):
        logging.getLogger(name).addHandler(Raises())


def lose(attribute: str):
    """Remove an attribute of the job that the worker needs to end the job."""
    setattr(get_current_job(), attribute, None)
    if attribute == "_failure_callback_name":
        delattr(get_current_job(), attribute)
        raise ValueError("with half a job")


def handle(job, *exc_info):
    """An exception handler that fails."""
    raise SystemExit("no handling")


def rows():
    yield 1


async def pages():
    yield 1


async def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def tidy(path: str):
    """Wait forever. At the end, report whether the wait ended within this job."""

    async def aside():
        try:
            await asyncio.sleep(60)
        finally:
            note(path, "aside")

    tasks = [asyncio.create_task(aside())]
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0)
        note(path, f"main with {len(tasks)}")


def note(path, words):
    with open(path, "a") as file:
        file.write(f"{words} in {getattr(get_current_job(), 'id', None)}\n")


def has_loop() -> bool:
    return asyncio.get_event_loop_policy().get_event_loop() is not None


def enqueue_odd(kind: str):
    rqjobs.enqueue("sample_jobs.ok", VALUES[kind]())
