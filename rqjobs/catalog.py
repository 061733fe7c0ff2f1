"""Job functions and their options: the allow-list.

A function is a job if it is a public function defined in a module of RQJOBS_MODULES, decorated or not, and no generator
function. A name from Redis is looked up here, by exact match; it is never imported.
"""

from __future__ import annotations

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

from rqjobs import config, serializers

F = TypeVar("F", bound=Callable[..., Any])
GENERATOR_REASON = "is a generator function, whose call runs nothing; make a plain function that loops over it the job"
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
    }
)


class NotAJob(ValueError):
    """A name or a function is not in the catalog. The message says how to get it in."""


@overload
def job(function: F) -> F: ...
@overload
def job(**options: Any) -> Callable[[F], F]: ...
def job(function: Any = None, **options: Any) -> Any:
    """Attach options to a job function and return the same plain function.

    Options are RQ's, with the defaults for each enqueue: `queue` (a name), `timeout`, `ttl`, `result_ttl`,
    `failure_ttl` (seconds), `retry`, `repeat`, `description`, `meta`, `on_success`, `on_failure`,
    `on_stopped`, `webhooks`. What is passed at enqueue comes before them.

    Raises:
        TypeError: an option that is none of these, something else than a function, or a generator function.
    """
    unknown = options.keys() - JOB_OPTIONS
    if unknown:
        raise TypeError(
            f"@job has no option {', '.join(sorted(unknown))}; it takes: {', '.join(sorted(JOB_OPTIONS))}"
        )

    def attach(target: F) -> F:
        if not inspect.isfunction(inspect.unwrap(target)):
            raise TypeError(
                f"@job takes a plain function, or options by name as in @job(queue='low'), not {target!r}"
            )
        refuse_generator(target)
        target.__rqjobs__ = options  # type: ignore[attr-defined]
        return target

    return attach(function) if function is not None else attach


def refuse_generator(function: Any) -> None:
    """Raises TypeError if a call of this function would run nothing of it."""
    if _is_generator(function):
        raise TypeError(f"{name_of(function)} {GENERATOR_REASON}")


def _is_generator(function: Any) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def options(function: Callable[..., Any]) -> dict[str, Any]:
    """What `@job` attached to `function`; empty for a plain one."""
    return getattr(function, "__rqjobs__", {})


def name_of(function: Callable[..., Any] | str) -> str:
    """`module.function`, as RQ stores it."""
    return (
        function if isinstance(function, str) else f"{function.__module__}.{function.__qualname__}"
    )


@dataclasses.dataclass(frozen=True)
class Catalog:
    """The job functions by name, and the modules that could not be imported with the reason."""

    functions: dict[str, Callable[..., Any]]
    modules: tuple[str, ...]
    errors: dict[str, str]

    def __iter__(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        return iter(sorted(self.functions.items()))

    def lookup(self, name: object) -> Callable[..., Any]:
        """The job function called exactly `name`.

        Raises:
            NotAJob: there is none.
        """
        try:
            return self.functions[name]  # type: ignore[index]
        except (KeyError, TypeError):
            raise NotAJob(self._reason(str(name))) from None

    def check(self, function: Callable[..., Any] | str) -> Callable[..., Any]:
        """The job function for `function`, which may be one or the name of one.

        Raises:
            NotAJob: it is not in the catalog, or only looks like a function that is.
        """
        if isinstance(function, str):
            return self.lookup(function)
        if _is_function(function):
            found = self.lookup(name_of(function))
            if function is found or function is inspect.unwrap(found):
                return found
        raise NotAJob(
            f"{function!r} is not a job; jobs are plain functions at the top level of a module"
        )

    def _reason(self, name: str) -> str:
        shown = name if len(name) < 80 else name[:77] + "…"
        module, _, short = name.rpartition(".")
        if module == "__main__":
            return f"{shown!r} cannot be a job: workers do not know your __main__; move it into a module"
        for broken, error in self.errors.items():
            if module == broken:
                return f"{shown!r} cannot be a job: {broken} failed to import: {error}"
        if module in self.modules and _is_generator(getattr(sys.modules.get(module), short, None)):
            return f"{shown!r} cannot be a job: it {GENERATOR_REASON}"
        if module in self.modules:
            hidden = "; public names only" if short.startswith("_") else ""
            return f"{shown!r} is not a job: {module} defines no such function{hidden}"
        nested = any(
            module.startswith(f"{configured}.") for configured in self.modules
        )  # or an unlisted submodule
        return (
            f"{shown!r} is not a job: its module is not in RQJOBS_MODULES (now: {', '.join(self.modules)})"
            + ("; jobs are plain functions at the top level of one" if nested else "")
        )


def current() -> Catalog:
    """The catalog of the modules in force, imported once. Broken modules are listed in `errors`."""
    return _load(config.current().modules)


serializers.load_classes = current  # a process may read before it enqueues


def must_load() -> Catalog:
    """The catalog, for a process that cannot do without any of it.

    Raises:
        ConfigError: a module failed to import.
    """
    catalog = current()
    for module, error in catalog.errors.items():
        raise config.ConfigError(f"RQJOBS_MODULES: {module} failed to import: {error}")
    return catalog


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
            ours = _is_function(value) and value.__module__ == name  # not what the module imports
            named = (
                ours and value.__qualname__ == attribute and attribute[0] != "_"
            )  # no lambda, no second name
            if named and not _is_generator(value):
                functions[f"{name}.{attribute}"] = value
        serializers.allow(_value_classes(module))
    return Catalog(functions, modules, errors)


def _is_function(value: Any) -> bool:
    """Whether it is a function, or an object that a decorator made of one (`functools.lru_cache`, a `@rq.job`).

    A proxy such as `flask.current_app` is not asked: it forwards the question, and what it stands for may not be there.
    """
    if not callable(value) or issubclass(type(value), type):
        return False
    while value is not None and type(value) is not types.FunctionType:
        value = inspect.getattr_static(value, "__wrapped__", None)
    return value is not None


def _value_classes(scope: Any, prefix: str = "") -> Iterator[type]:
    """The enums and dataclasses that a module defines, those nested in its classes too."""
    module = scope.__module__ if prefix else scope.__name__
    for name, value in list(vars(scope).items()):
        is_class = issubclass(type(value), type)  # without asking a proxy
        if is_class and value.__module__ == module and value.__qualname__ == prefix + name:
            if issubclass(value, Enum) or dataclasses.is_dataclass(value):
                yield value
            yield from _value_classes(value, f"{prefix}{name}.")


@functools.cache
def flask_app() -> Any:
    """The Flask app that RQJOBS_FLASK_APP names, in whose context jobs run; None if it names none.

    Raises:
        ConfigError: it cannot be imported, or is no Flask app.
    """
    name = config.current().flask_app
    if not name:
        return None
    module, _, attribute = name.partition(":")
    add_cwd_to_sys_path()
    try:
        app = getattr(importlib.import_module(module), attribute.removesuffix("()"))
        app = app if hasattr(app, "app_context") else app()
        app.app_context  # noqa: B018
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise config.ConfigError(
            f"RQJOBS_FLASK_APP={name!r} gives no Flask app: {reason}"
        ) from error
    return app


def add_cwd_to_sys_path() -> None:
    """Console scripts start without the working directory on the path, where an MVP's modules are."""
    if "" not in sys.path and "." not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
