"""The demo's jobs are documented, take every text, and `rqjobs demo` prints their results."""

from __future__ import annotations

import inspect
import json
from datetime import date, timedelta

import pytest

import rqjobs
from rqjobs import catalog, config, demo
from rqjobs.cli import demo as demo_command
from rqjobs.web.forms import fields

TEXT = "A lighthouse warns ships of rocks. It rained!"


@pytest.fixture(autouse=True)
def demo_is_a_jobs_module(settings):
    config.use(modules=("rqjobs.demo",))


def test_every_job_is_in_the_catalog_and_documents_its_arguments():
    """Imported functions and classes are not jobs."""
    jobs = catalog.current()
    names = ["book_room", "greet", "slow", "statistics", "unreliable"]
    assert not jobs.import_errors and [name for name, _ in jobs] == [
        f"rqjobs.demo.{name}" for name in names
    ]
    for _, function in jobs:
        for parameter in inspect.signature(function).parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty
            assert f"        {parameter.name}: " in function.__doc__


def test_one_job_has_a_form_field_of_each_kind():
    controls = {field.widget.control for field in fields.form_fields(demo.book_room)}
    assert controls == {
        "text",
        "textarea",
        "number",
        "checkbox",
        "select",
        "date",
        "datetime-local",
    }
    booking = demo.book_room(
        "Ada", date(2030, 12, 31), 2, late_checkout=timedelta(hours=1), extras=["dinner"]
    )
    assert booking == {
        "guest": "Ada",
        "room": "two beds",
        "checkout": "2031-01-02 12:00",
        "total": 179.0,
        "services": ["dinner", "breakfast"],
    }


def test_statistics_count_a_text():
    assert demo.statistics(TEXT) == {"words": 8, "sentences": 2, "characters": len(TEXT)}


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\t ",
        "。",
        "日本語の文章です。これは二つ目の文。",
        "Привет, мир. Как дела?",
        "مرحبا بالعالم. كيف حالك؟",
        "\ud800 \udfff",
        "\x00",
        "🙂🙂",
        "…" * 50,
    ],
)
def test_every_text_is_accepted(text):
    for function in (demo.statistics, demo.greet):
        json.dumps(function(text), allow_nan=False)


def test_unreliable_fails_at_its_failure_rate():
    with pytest.raises(ConnectionError, match="on purpose"):
        demo.unreliable(failure_rate=1)
    assert {demo.unreliable(failure_rate=0) for _ in range(50)} == {"the service answered"}


def test_slow_says_its_progress(worker, eventually):
    job = rqjobs.enqueue(demo.slow, 3, 0.0)
    worker(env={"RQJOBS_MODULES": "rqjobs.demo"})
    eventually(lambda: job.get_status().value == "finished")
    assert job.progress[:2] == (3, 3)
    assert job.return_value() == 3


def test_run_prints_every_result(worker, tmp_path, monkeypatch):
    """`make demo`: five jobs, each result as it arrives, and the progress of the slow one."""
    path, printed = tmp_path / "README.md", []
    path.write_text(TEXT)
    monkeypatch.setitem(
        demo.unreliable.__rqjobs__, "retry", rqjobs.Retry(max=20)
    )  # at once, and surely
    worker(env={"RQJOBS_MODULES": "rqjobs.demo"})
    enqueue = demo_command.enqueue

    def enqueue_quickly(function, *args, **kwargs):
        if function is demo.slow:
            args = (2, 0.0)
        return enqueue(function, *args, **kwargs)

    monkeypatch.setattr(demo_command, "enqueue", enqueue_quickly)
    assert demo_command.run(str(path), printed.append) == 0, printed
    names = [line.partition(":")[0] for line in printed]
    assert sorted(name for name in names if " " not in name) == [
        "book_room",
        "greet",
        "slow",
        "statistics",
        "unreliable",
    ]
    assert "slow … 2 of 2" in printed


def test_run_names_the_missing_worker(tmp_path):
    """No worker serves the queues: it ends in time, with the command to type."""
    path, printed = tmp_path / "README.md", []
    path.write_text("x")
    assert demo_command.run(str(path), printed.append, limit=0.1) == 1
    hint = (
        "statistics: not done after 0 s; no worker serves the queue 'high', start one with: "
        "rqjobs worker high"
    )
    assert hint in printed


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file"),
        (b"x" * 300_000, "more than RQJOBS_MAX_PAYLOAD_BYTES"),
    ],
)
def test_run_reports_a_file_that_cannot_be_read_or_is_too_large(content, expected, tmp_path):
    path, printed = tmp_path / "file", []
    if content:
        path.write_bytes(content)
    assert demo_command.run(str(path), printed.append) == 1
    assert len(printed) == 1 and expected in printed[0]
