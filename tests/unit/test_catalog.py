"""The allow-list: which functions are jobs, and the errors for others."""

from __future__ import annotations

import functools
import json
import os
import sys
import textwrap

import pytest
import rq.job
import sample_jobs

import rqjobs
from rqjobs import catalog, config, rq_patches, serializers


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module of job functions, put it in force, and return the catalog."""
    monkeypatch.syspath_prepend(str(tmp_path))
    written = []

    def write(source, name="shop_jobs", modules=None):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        written.append(name)
        config.use(modules=modules or (name,))
        catalog._load.cache_clear()
        return catalog.current()

    yield write
    for name in written:
        sys.modules.pop(name, None)
    catalog._load.cache_clear()


def test_public_functions_of_the_module_are_jobs_and_nothing_else(module):
    jobs = module("""
        import dataclasses, enum, functools, os
        from json import dumps
        from os.path import join
        from rqjobs import job, enqueue

        def plain(): ...
        async def later(): ...
        @job(queue="low")
        def optioned(): ...
        @functools.wraps(plain)
        def plain_again(): ...

        def _private(): ...
        alias = plain
        short = lambda: 1
        partial = functools.partial(plain)
        remove = os.remove
        length = len
        class Thing:
            def method(self): ...
            def __call__(self): ...
        thing = Thing()
        bound = thing.method
    """)
    assert [name for name, _ in jobs] == [
        "shop_jobs.later",
        "shop_jobs.optioned",
        "shop_jobs.plain",
    ]
    assert not jobs.import_errors and jobs.modules == ("shop_jobs",)


def test_a_module_may_have_unbound_proxies(module):
    """Any access to `current_app` outside of a request raises."""
    assert dict(
        module("""
        from flask import current_app, g, request, session
        from werkzeug.local import LocalProxy

        def broken(): raise ZeroDivisionError
        lazy = LocalProxy(broken)
    """)
    ).keys() == {"shop_jobs.broken"}


def test_a_decorated_function_is_a_job_under_its_own_name(module):
    """This needs a decorator with functools.wraps."""
    jobs = module("""
        import functools
        def loud(function):
            @functools.wraps(function)
            def wrapper(*args):
                return function(*args).upper()
            return wrapper
        @loud
        def shout(text): return text
    """)
    assert jobs.lookup("shop_jobs.shout")("a") == "A"


def test_job_returns_the_same_function_with_options_attached():
    def function(x):
        return x

    assert rqjobs.job(function) is function and catalog.options(function) == {}
    assert rqjobs.job(queue="low", timeout=5)(function) is function and function(3) == 3
    assert catalog.options(function) == {"queue": "low", "timeout": 5}
    assert catalog.options(sample_jobs.ok) == {}


def test_a_wrong_argument_of_job_raises_a_type_error_with_the_remedy():
    with pytest.raises(
        TypeError, match=r"@job has no option priority, queues; it takes: .*description, .*queue, "
    ):
        rqjobs.job(queues="low", priority=1)
    for wrong in (
        "low",
        len,
        type,
        functools.partial(print),
    ):  # RQ's own @job takes the queue's name like this
        with pytest.raises(TypeError, match=r"as in @job\(queue='low'\), not "):
            rqjobs.job(wrong)


def impostor():
    return "not the one in sample_jobs"


impostor.__module__, impostor.__qualname__ = "sample_jobs", "ok"


class Methods:
    def method(self): ...


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (
            "os.system",
            "'os.system' is not a job: its module is not in RQJOBS_MODULES (now: sample_jobs, missing_jobs)",
        ),
        (os.getcwd, "is not a job; jobs are plain functions"),
        (os.path.join, "'posixpath.join' is not a job: its module is not in RQJOBS_MODULES"),
        ("sample_jobs._hidden", "sample_jobs defines no such function; public names only"),
        (sample_jobs._hidden, "sample_jobs defines no such function; public names only"),
        (
            "sample_jobs.nonsense",
            "'sample_jobs.nonsense' is not a job: sample_jobs defines no such function",
        ),
        ("sample_jobs.os", "sample_jobs defines no such function"),
        ("sample_jobs.Color", "sample_jobs defines no such function"),
        ("sample_jobs.get_current_job", "sample_jobs defines no such function"),
        (
            "sample_jobs.os.system",
            "(now: sample_jobs, missing_jobs); jobs are plain functions at the top level of one",
        ),
        ("sample_jobs.Outer.Inner", "jobs are plain functions at the top level of one"),
        (
            "__main__.report",
            "cannot be a job: workers cannot import your __main__; move it into a module",
        ),
        (
            "missing_jobs.report",
            "missing_jobs failed to import: ModuleNotFoundError: No module named 'missing_jobs'",
        ),
        (Methods.method, "is not a job: its module is not in RQJOBS_MODULES"),
        (Methods().method, "is not a job; jobs are plain functions"),
        (len, "<built-in function len> is not a job; jobs are plain functions"),
        (lambda: 1, "is not a job; jobs are plain functions"),
        (rqjobs.chain(rqjobs.s(sample_jobs.ok)), "a flow has a method enqueue() of its own"),
        (functools.partial(sample_jobs.ok), "is not a job; jobs are plain functions"),
        (sample_jobs.Color, "is not a job; jobs are plain functions"),
        (impostor, "is not a job; jobs are plain functions"),
        (None, "None is not a job; jobs are plain functions"),
        ("", "'' is not a job"),
        ("x" * 5000, "x…' is not a job"),
    ],
)
def test_a_name_outside_the_catalog_is_refused_and_nothing_is_stored(function, reason, redis):
    config.use(modules=("sample_jobs", "missing_jobs"))
    with pytest.raises(rqjobs.NotAJob) as caught:
        rqjobs.enqueue(function)
    assert (
        reason in str(caught.value)
        and "\n" not in str(caught.value)
        and len(str(caught.value)) < 300
    )
    assert not redis.keys("*")


@pytest.mark.parametrize("name", [b"sample_jobs.ok", ["sample_jobs.ok"], {"a": 1}, None, 3])
def test_a_name_of_another_type_is_not_found(name):
    with pytest.raises(rqjobs.NotAJob):
        catalog.current().lookup(name)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import no_such_thing", "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("def broken(:", "SyntaxError: "),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_module_that_fails_to_import_is_listed_and_the_others_work(module, source, error):
    jobs = module(source, modules=("sample_jobs", "shop_jobs"))
    assert (
        jobs.import_errors["shop_jobs"].startswith(error)
        and "\n" not in jobs.import_errors["shop_jobs"]
    )
    assert jobs.lookup("sample_jobs.ok") is sample_jobs.ok
    with pytest.raises(rqjobs.NotAJob, match="shop_jobs failed to import"):
        jobs.lookup("shop_jobs.anything")
    with pytest.raises(config.ConfigError, match="RQJOBS_MODULES: shop_jobs failed to import: "):
        catalog.must_load()


def test_dataclasses_and_enums_of_a_module_are_allowed_in_payloads(module):
    """Classes that the module defines, nested ones too, but not imported ones."""
    module("""
        import dataclasses, enum
        from sample_jobs import Point as Imported
        class Kind(enum.Enum):
            A = 1
        class Outer:
            @dataclasses.dataclass
            class Inner:
                x: int
        class Plain: ...
        def job(): ...
    """)
    import shop_jobs

    value = [shop_jobs.Kind.A, shop_jobs.Outer.Inner(1)]
    assert serializers.JSONSerializer.loads(serializers.JSONSerializer.dumps(value)) == value
    with pytest.raises(rqjobs.PayloadError, match=r"is a shop_jobs.Plain|is a Plain"):
        serializers.JSONSerializer.dumps(shop_jobs.Plain())


def test_jobs_in_the_working_directory_are_found(spawn, tmp_path):
    """The path of a console script lacks the working directory."""
    (tmp_path / "here_jobs.py").write_text("def found(): ...\n")
    script = tmp_path / "bin" / "script.py"
    script.parent.mkdir()
    script.write_text(
        "import json\nfrom rqjobs import catalog\nprint(json.dumps([n for n, _ in catalog.current()]))\n"
    )
    process = spawn(
        sys.executable, str(script), env={"RQJOBS_MODULES": "here_jobs", "PYTHONPATH": ""}
    )
    assert process.wait(20) == 0, process.output()
    assert json.loads(process.output()) == ["here_jobs.found"]


def test_rq_with_patches_looks_names_up_and_imports_nothing(monkeypatch):
    """This includes RQ's Job class, which rq-dashboard and the clean-up of registries use."""
    monkeypatch.setattr(rq.job, "import_attribute", rq.job.import_attribute)
    rq_patches.look_names_up()
    assert rq.job.import_attribute("sample_jobs.ok") is sample_jobs.ok
    before = set(sys.modules)
    for name in ("os.system", "this.s", "builtins.eval"):
        with pytest.raises(rqjobs.NotAJob):
            rq.job.import_attribute(name)
    assert set(sys.modules) == before
