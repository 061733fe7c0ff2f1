"""Job functions and their options: the allow-list.

Each public function that a module of RQJOBS_MODULES defines is a job function, decorated or not.
Generator functions are not. A name from Redis is looked up by exact match and never imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, TypeVar, overload

from rqjobs import config, policies, serializers, signatures
from rqjobs.policies import record_url

F = TypeVar("F", bound=Callable[..., Any])
GENERATOR_REASON = (
    "is a generator function, whose call runs nothing; make a plain function that loops over it "
    "the job"
)
FUNCTION_OPTIONS = ("queue", "job_url")  # of the function, and not of each of its jobs
JOB_OPTIONS = frozenset(
    {
        "queue",
        "timeout",
        "result_ttl",
        "failure_ttl",
        "ttl",
        "retry",
        "repeat",
        "description",
        "meta",
        "on_success",
        "on_failure",
        "on_stopped",
        "webhooks",
        "job_url",
        *policies.OPTIONS,
    }
)


# Job functions of rqjobs itself. No form enqueues them: they may do more than its user.
BUILT_IN_FUNCTIONS = ("rqjobs.bulk_actions.change_jobs",)


class NotAJob(ValueError):
    """A name or a function is not in the catalog. The message has the remedy."""


@overload
def job(function: F) -> F: ...
@overload
def job(**options: Any) -> Callable[[F], F]: ...
def job(function: Any = None, **options: Any) -> Any:
    """Attach options to a job function and return the same plain function.

    The options are RQ's, and the defaults of each enqueue: `queue` (a name), `timeout`, `ttl`,
    `result_ttl`, `failure_ttl` (seconds), `retry`, `repeat`, `description`, `meta`, `on_success`,
    `on_failure`, `on_stopped`, `webhooks`. `policies` has further ones. Options of an enqueue take
    precedence. `job_url` is a link from a job's page to a record of the application: an address
    with the names of parameters in braces. `function.s(*args, **kwargs)` is a call for a flow, as
    `rqjobs.s` makes it.

    Raises:
        TypeError: an option is unknown, or `function` is a generator function or not a function.
        TypeError, ValueError: a policy is wrong, or cannot go together with another.
    """
    unknown = options.keys() - JOB_OPTIONS
    if unknown:
        raise TypeError(
            f"@job has no option {', '.join(sorted(unknown))}; it takes: "
            f"{', '.join(sorted(JOB_OPTIONS))}"
        )

    def attach(target: F) -> F:
        if not inspect.isfunction(inspect.unwrap(target)):
            raise TypeError(
                f"@job takes a plain function, or options by name as in @job(queue='low'), "
                f"not {target!r}"
            )
        refuse_generator(target)
        policies.check(target, options)
        if options.get("job_url") is not None:
            record_url.check(options["job_url"], target)
        target.__rqjobs__ = options  # type: ignore[attr-defined]
        target.s = functools.partial(signatures.s, target)  # type: ignore[attr-defined]
        return target

    if function is None:
        return attach
    return attach(function)


def refuse_generator(function: Any) -> None:
    """Raises TypeError for a generator function, whose call runs nothing."""
    if _is_generator(function):
        raise TypeError(f"{name_of(function)} {GENERATOR_REASON}")


def _is_generator(function: Any) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def options(function: Callable[..., Any]) -> dict[str, Any]:
    """The options that `@job` has attached to `function`."""
    return getattr(function, "__rqjobs__", {})


def name_of(function: Callable[..., Any] | str) -> str:
    """`module.function`, as RQ stores it."""
    if isinstance(function, str):
        return function
    return f"{function.__module__}.{function.__qualname__}"


@dataclasses.dataclass(frozen=True)
class Catalog:
    """The job functions by name, and the modules that failed to import with their errors."""

    functions: dict[str, Callable[..., Any]]
    modules: tuple[str, ...]
    import_errors: dict[str, str]

    def __iter__(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        return iter(sorted(self.functions.items()))

    def lookup(self, name: object) -> Callable[..., Any]:
        """The job function of exactly this name.

        Raises:
            NotAJob: there is none.
        """
        if name in BUILT_IN_FUNCTIONS:
            return _built_in(str(name))
        try:
            return self.functions[name]  # type: ignore[index]
        except (KeyError, TypeError):
            raise NotAJob(self._reason(str(name))) from None

    def check(self, function: Callable[..., Any] | str) -> Callable[..., Any]:
        """The job function for a function or a name.

        Raises:
            NotAJob: it is not in the catalog, or differs from the function of that name.
        """
        if isinstance(function, str):
            return self.lookup(function)
        if _is_function(function) and "<" not in function.__qualname__:  # "<lambda>", "<locals>"
            found = self.lookup(name_of(function))
            if function is found or function is inspect.unwrap(found):
                return found
        hint = "; a flow has a method enqueue() of its own" if hasattr(function, "enqueue") else ""
        raise NotAJob(
            f"{function!r} is not a job; jobs are plain functions at the top level of a module{hint}"
        )

    def _reason(self, name: str) -> str:
        shown = name if len(name) < 80 else name[:77] + "…"
        module, _, short = name.rpartition(".")
        if module == "__main__":
            return (
                f"{shown!r} cannot be a job: workers cannot import your __main__; move it into a "
                f"module"
            )
        if module in self.import_errors:
            error = self.import_errors[module]
            return f"{shown!r} cannot be a job: {module} failed to import: {error}"
        if module in self.modules:
            if _is_generator(getattr(sys.modules.get(module), short, None)):
                return f"{shown!r} cannot be a job: it {GENERATOR_REASON}"
            hint = "; public names only" if short.startswith("_") else ""
            return f"{shown!r} is not a job: {module} defines no such function{hint}"
        reason = (
            f"{shown!r} is not a job: its module is not in RQJOBS_MODULES "
            f"(now: {', '.join(self.modules)})"
        )
        # A method of a class in a jobs module, or a function of a submodule that is not listed.
        if any(module.startswith(f"{configured}.") for configured in self.modules):
            reason += "; jobs are plain functions at the top level of one"
        return reason


def current() -> Catalog:
    """The catalog of RQJOBS_MODULES, imported once. `import_errors` lists broken modules."""
    return _load(config.current().modules)


# A process may read enums and dataclasses before it enqueues a job.
serializers.load_classes = current


def must_load() -> Catalog:
    """The catalog, for a process that needs all of its modules, and the Flask app if there is one.

    Raises:
        ConfigError: a module or the app cannot be imported, or a job needs an app and none is set.
    """
    flask_app()  # its config may have RQJOBS_MODULES
    catalog = current()
    for module, error in catalog.import_errors.items():
        raise config.ConfigError(f"RQJOBS_MODULES: {module} failed to import: {error}")
    app_jobs = _app_jobs & catalog.functions.keys()
    if app_jobs and flask_app() is None:
        raise config.ConfigError(
            f"{min(app_jobs)} is a job of a Flask app, and no app is set: set RQJOBS_FLASK_APP, "
            f"for example to shop:create_app, or start the worker with flask --app shop jobs worker"
        )
    return catalog


def _built_in(name: str) -> Callable[..., Any]:
    module, _, attribute = name.rpartition(".")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return function


@functools.lru_cache(maxsize=8)
def _load(modules: tuple[str, ...]) -> Catalog:
    functions: dict[str, Callable[..., Any]] = {}
    errors: dict[str, str] = {}
    add_cwd_to_sys_path()
    for name in modules:
        try:
            module = importlib.import_module(name)
        except (Exception, SystemExit) as error:
            errors[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        for attribute, value in vars(module).items():
            if _is_job_function(value, name, attribute):
                functions[f"{name}.{attribute}"] = value
        serializers.allow(_value_classes(module))
    return Catalog(functions, modules, errors)


def _is_job_function(value: Any, module: str, attribute: str) -> bool:
    """Whether the module defines the function under this public name; imported ones are not jobs."""
    if not _is_function(value) or _is_generator(value) or hasattr(value, "__rqjobs_hook__"):
        return False
    if value.__module__ != module or value.__qualname__ != attribute:
        return False
    return not attribute.startswith("_")


def _is_function(value: Any) -> bool:
    """Whether it is a function, or a decorator's object for one (`functools.lru_cache`, `@rq.job`).

    `isinstance` is not called on a proxy such as `flask.current_app`: it would be forwarded to an
    object that may not exist.
    """
    if not callable(value) or issubclass(type(value), type):
        return False
    while value is not None and type(value) is not types.FunctionType:
        value = inspect.getattr_static(value, "__wrapped__", None)
    return value is not None


def _value_classes(scope: Any, prefix: str = "") -> Iterator[type]:
    """The enums and dataclasses that a module defines, also within its classes."""
    module = scope.__module__ if prefix else scope.__name__
    for name, value in list(vars(scope).items()):
        is_class = issubclass(type(value), type)  # `isinstance` would be forwarded by a proxy
        if is_class and value.__module__ == module and value.__qualname__ == prefix + name:
            if issubclass(value, Enum) or dataclasses.is_dataclass(value):
                yield value
            yield from _value_classes(value, f"{prefix}{name}.")


_app: Any = None  # the Flask app of this process
_is_app_chosen = False  # by RQJOBS_FLASK_APP, or by `flask --app`
_app_jobs: set[str] = set()  # the names of the functions that need an app


def flask_app() -> Any:
    """The Flask app in whose context jobs run; None if there is none.

    It is the app of `choose_flask_app`, or the last one of `offer_flask_app`, or else that of
    RQJOBS_FLASK_APP.

    Raises:
        ConfigError: that one cannot be imported, or is not a Flask app.
    """
    if _app is None:
        name = config.current().flask_app
        if name:
            choose_flask_app(_import_flask_app(name))
    return _app


def flask_app_in_use() -> Any:
    """The Flask app of this process; None if there is none yet. RQJOBS_FLASK_APP is not imported."""
    return _app


def choose_flask_app(app: Any) -> None:
    """Run this process's jobs in the context of `app`, whatever other apps there are."""
    global _app, _is_app_chosen
    _app = app
    _is_app_chosen = True


@contextlib.contextmanager
def flask_app_for_now(app: Any) -> Iterator[None]:
    """Run jobs in the context of `app` within the block; None leaves it as it is."""
    global _app
    before = _app
    if app is not None:
        _app = app
    try:
        yield
    finally:
        if app is not None:
            _app = before


def offer_flask_app(app: Any) -> None:
    """Run this process's jobs in the context of `app`, unless another one is chosen."""
    global _app
    if not _is_app_chosen:
        _app = app


def require_flask_app(function: Callable[..., Any]) -> None:
    """Let no worker without a Flask app start if its modules have this job function."""
    _app_jobs.add(name_of(function))


def _import_flask_app(name: str) -> Any:
    module, _, attribute = name.partition(":")
    add_cwd_to_sys_path()
    try:
        app = getattr(importlib.import_module(module), attribute.removesuffix("()"))
        if not hasattr(app, "app_context"):
            app = app()  # a factory
        app.app_context  # noqa: B018
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise config.ConfigError(
            f"RQJOBS_FLASK_APP={name!r} gives no Flask app: {reason}"
        ) from error
    return app


def add_cwd_to_sys_path() -> None:
    """Add the working directory to the path, which console scripts omit."""
    if "" not in sys.path and "." not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
