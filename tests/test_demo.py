"""The demo's jobs say true things about texts, and take every text."""

from __future__ import annotations

import inspect
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rqjobs
from rqjobs import catalog, config, demo
from rqjobs.cli import demo as demo_command

MARKDOWN = """# Lighthouses

A lighthouse warns ships of rocks. Every lighthouse has a keeper. It rained.

- The keeper lights the lamp.
- [The lamp](https://example.org/lamp) burns oil

| lamp | oil |
|------|-----|
| big  | 3   |

```python
import lighthouse  # code is not prose
```

The keeper of the lighthouse saw the ships, and the ships saw the lighthouse. Nothing else happened there.
"""


@pytest.fixture(autouse=True)
def demo_is_a_jobs_module(settings):
    config.use(modules=("rqjobs.demo",))


def test_every_job_is_in_the_catalog_and_documents_its_arguments():
    """And nothing else is: what the module only uses or keeps for itself is no job."""
    jobs = catalog.current()
    names = ["key_terms", "slow", "statistics", "summarize", "unreliable"]
    assert not jobs.errors and [name for name, _ in jobs] == [
        f"rqjobs.demo.{name}" for name in names
    ]
    for _, function in jobs:
        parameters = inspect.signature(function, eval_str=True).parameters
        for parameter in parameters.values():
            assert parameter.annotation in (str, int, float)
            assert f"        {parameter.name}: " in function.__doc__


def test_statistics_count_prose_and_not_code():
    counted = demo.statistics(
        "One two three. Four five extraordinary words!\n\n```\nnot this\n```\n"
    )
    assert (counted["words"], counted["sentences"], counted["words per sentence"]) == (7, 2, 3.5)
    assert counted["LIX"] == round(3.5 + 100 / 7)
    assert demo.statistics("word " * 238)["reading minutes"] == 1.0
    assert demo.statistics("")["level"] == "nothing to read"


def test_key_terms_are_what_the_text_is_about():
    terms = demo.key_terms(MARKDOWN, 2)
    assert {"lighthouse", "keeper"} <= {term for term, _ in terms}
    assert [score for _, score in terms] == sorted((score for _, score in terms), reverse=True)
    every = {term for term, _ in demo.key_terms(MARKDOWN, 99)}
    assert not {"the", "https", "example", "python", "import lighthouse"} & every
    assert demo.key_terms(MARKDOWN, 0) == []


def test_summary_is_of_whole_sentences_in_their_order():
    summary = demo.summarize(MARKDOWN, 2)
    assert summary.endswith(
        "The keeper of the lighthouse saw the ships, and the ships saw the lighthouse."
    )
    assert "It rained" not in summary and "```" not in summary
    assert demo.summarize("Only this.", 5) == "Only this."
    assert demo.summarize(MARKDOWN, 0) == ""


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
        "```\nnever closed",
        "| a |\n|---|",
        "<b>bold",
        "[a](b",
        "__init__",
        "…" * 50,
    ],
)
def test_no_text_is_too_strange(text):
    for function in (demo.statistics, demo.key_terms, demo.summarize):
        json.dumps(function(text), allow_nan=False)
    assert demo.unreliable(text, failure_rate=0).startswith("sha256:")


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "a",
                "The ",
                "b.",
                "!",
                "\n",
                "\n\n",
                "- ",
                "# ",
                "```",
                "|",
                "[",
                "](",
                ")",
                "<",
                ">",
                "*",
                "_",
                "http://",
                "'",
                "1.",
                "\t",
                "é",
            ]
        )
    ).map("".join),
    st.integers(-1, 5),
)
def test_any_markdown_like_text_gives_results(text, count):
    assert demo.statistics(text)["words"] >= 0
    assert len(demo.key_terms(text, count)) <= max(count, 0)
    demo.summarize(text, count)


@pytest.mark.parametrize(
    "piece", ["word ", "a. ", "\n", "[", "<a", "<!--", "\t", "- ", "_", "a'", "-\n", "word\n"]
)
def test_time_grows_with_the_text_and_not_with_its_square(piece):
    """300,000 tabs took minutes with the first regular expressions; it is a second now, of processor time."""
    text, start = piece * (100_000 // len(piece)), time.process_time()
    demo.statistics(text), demo.key_terms(text), demo.summarize(text)
    assert time.process_time() - start < 5


def test_unreliable_fails_as_often_as_it_is_told():
    with pytest.raises(ConnectionError, match="on purpose"):
        demo.unreliable("x", failure_rate=1)
    assert {demo.unreliable("x", failure_rate=0) for _ in range(50)} == {
        "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    }


def test_slow_says_in_meta_how_far_it_is(worker, eventually):
    job = rqjobs.enqueue(demo.slow, 3, 0.0)
    worker(env={"RQJOBS_MODULES": "rqjobs.demo"})
    eventually(lambda: job.get_status().value == "finished")
    assert job.get_meta() == {"done": 3, "total": 3}
    assert 3 < job.return_value() < 3.3


def test_run_prints_every_result(worker, tmp_path, monkeypatch):
    """`make demo`: five jobs on a file, each result as it arrives, and the progress of the slow one."""
    path, said = tmp_path / "README.md", []
    path.write_text(MARKDOWN)
    monkeypatch.setitem(
        demo.unreliable.__rqjobs__, "retry", rqjobs.Retry(max=20)
    )  # at once, and surely
    worker(env={"RQJOBS_MODULES": "rqjobs.demo"})
    enqueue = demo_command.enqueue  # two steps of the slow one will do
    monkeypatch.setattr(
        demo_command, "enqueue", lambda function, *args: enqueue(function, *(args or (2, 0.0)))
    )
    assert demo_command.run(str(path), said.append) == 0, said
    names = [line.partition(":")[0] for line in said]
    assert sorted(name for name in names if " " not in name) == [
        "key_terms",
        "slow",
        "statistics",
        "summarize",
        "unreliable",
    ]
    assert "slow … 2 of 2" in said


def test_run_tells_who_is_missing(tmp_path):
    """Nobody serves the queues: it ends in time, with the command to type."""
    path, said = tmp_path / "README.md", []
    path.write_text("x")
    assert demo_command.run(str(path), said.append, limit=0.1) == 1
    hint = "statistics: not done after 0 s; no worker serves the queue 'high', start one with: rqjobs worker high"
    assert hint in said


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file"),
        (b"x" * 300_000, "more than RQJOBS_MAX_PAYLOAD_BYTES"),
    ],
)
def test_run_refuses_a_file_that_it_cannot_take(content, expected, tmp_path):
    path, said = tmp_path / "file", []
    if content:
        path.write_bytes(content)
    assert demo_command.run(str(path), said.append) == 1
    assert len(said) == 1 and expected in said[0]
