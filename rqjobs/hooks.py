"""Hooks: functions of the application that are called when jobs are enqueued and run.

A module of RQJOBS_MODULES registers them, so that the workers have them too. Each hook is a
decorator:

    @hooks.before_enqueue   def stamp(job)          before the job is stored; may change `job.meta`
    @hooks.after_enqueue    def count(job)          the job is stored
    @hooks.before_run       def begin(job)          its function is called next
    @hooks.after_run        def end(job, error)     its function has returned, or raised `error`
    @hooks.around_run       def span(job)           a generator: the run takes place in its `yield`
    @hooks.on_retry         def note(job, error)    a run has failed, and the job runs again
    @hooks.on_failure       def alert(job, error)   a run has failed, and is not retried

An exception of `before_enqueue` refuses the enqueue. Exceptions of the others are logged.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from rq.timeouts import BaseTimeoutException

from rqjobs import texts
from rqjobs.job_fields import check_size

F = TypeVar("F", bound=Callable[..., Any])

log = logging.getLogger("rqjobs")


class Hook:
    """A decorator that registers functions, which are called in the order of their registration."""

    def __init__(self, name: str, *parameters: str, is_generator: bool = False):
        self.name = name
        self.parameters = parameters
        self.is_generator = is_generator
        self.functions: tuple[Callable[..., Any], ...] = ()

    def __call__(self, function: F) -> F:
        """Register a function, and return it. It is not a job function then.

        Raises:
            TypeError: it is not a plain function of the hook's parameters. For `around_run` it must
                be a generator function.
        """
        self._check(function)
        if function not in self.functions:
            self.functions += (function,)
        function.__rqjobs_hook__ = True  # type: ignore[attr-defined]
        _note_run_hooks()
        return function

    def _check(self, function: Any) -> None:
        example = f"def name({', '.join(self.parameters)})"
        if not inspect.isfunction(function):
            raise TypeError(f"hooks.{self.name} takes a function, {example}, not {function!r:.80}")
        name = f"{function.__module__}.{function.__qualname__}"
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"hooks.{self.name}: {name} is async; make it a plain {example}")
        if inspect.isgeneratorfunction(function) != self.is_generator:
            wanted = (
                "must have one yield, and no @contextmanager"
                if self.is_generator
                else "must not have a yield"
            )
            raise TypeError(f"hooks.{self.name}: {name} {wanted}")
        try:
            inspect.signature(function).bind(*self.parameters)
        except TypeError:
            raise TypeError(f"hooks.{self.name}: {name} cannot be called as {example}") from None

    def remove(self, function: Callable[..., Any]) -> None:
        """Call this function no more."""
        self.functions = tuple(other for other in self.functions if other is not function)
        _note_run_hooks()

    def call(self, job: Any, *arguments: Any) -> None:
        """Call the functions. Their exceptions are logged, except that of a time limit."""
        for function in self.functions:
            with self.logged(function, job):
                function(job, *arguments)

    @contextlib.contextmanager
    def logged(self, function: Callable[..., Any], job: Any) -> Iterator[None]:
        """Log what the block raises. A time limit ends the job, or the calls of its hooks."""
        try:
            yield
        except (BaseTimeoutException, KeyboardInterrupt):
            raise
        except BaseException as error:  # also of asyncio, or of a library
            log.error(
                "Job %s: the hook %s (%s.%s) failed and is ignored:\n%s",
                job.id,
                self.name,
                function.__module__,
                function.__qualname__,
                "".join(texts.format_exception(type(error), error, error.__traceback__)),
            )


before_enqueue = Hook("before_enqueue", "job")
after_enqueue = Hook("after_enqueue", "job")
before_run = Hook("before_run", "job")
after_run = Hook("after_run", "job", "error")
around_run = Hook("around_run", "job", is_generator=True)
on_retry = Hook("on_retry", "job", "error")
on_failure = Hook("on_failure", "job", "error")

has_run_hooks = False


def _note_run_hooks() -> None:
    global has_run_hooks
    has_run_hooks = bool(before_run.functions or after_run.functions or around_run.functions)


def check_enqueue(job: Any) -> None:
    """Call the hooks before a job is stored, and check the meta that they leave.

    Raises:
        Exception: a hook refuses the job.
        PayloadError, ResultTooLarge: the meta cannot be stored.
    """
    if not before_enqueue.functions:
        return
    for function in before_enqueue.functions:
        function(job)
    if job.meta:
        check_size("meta", job.serializer.dumps(job.meta))


def run(job: Any, function: Callable[[], Any]) -> Any:
    """Call `function`, which runs the job, between the hooks of a run. They share its time limit."""
    managers: list[tuple[Callable[..., Any], Any]] = []
    error: BaseException | None = None
    try:
        before_run.call(job)
        _enter_all(job, managers)
        return function()
    except BaseException as raised:
        error = raised
        raise
    finally:
        with contextlib.ExitStack() as stack:  # calls all of them, the last one first
            stack.callback(after_run.call, job, error)
            for hook, manager in managers:
                stack.callback(_leave, hook, job, manager, error)
        error = None  # it refers to this frame


def _enter_all(job: Any, managers: list[tuple[Callable[..., Any], Any]]) -> None:
    for hook in around_run.functions:
        with around_run.logged(hook, job):
            manager = contextlib.contextmanager(hook)(job)
            manager.__enter__()
            managers.append((hook, manager))


def _leave(hook: Callable[..., Any], job: Any, manager: Any, error: BaseException | None) -> None:
    """End a hook around a run, and show it the error of the run, which it cannot suppress."""
    with around_run.logged(hook, job):
        try:
            if error is None:
                manager.__exit__(None, None, None)
            else:
                manager.__exit__(type(error), error, error.__traceback__)
        except BaseException as raised:
            if raised is not error:
                raise
