"""schemathesis, which holds a served API to its OpenAPI document with requests of its own."""

import subprocess
from pathlib import Path

import pytest

import rqjobs
from rqjobs import every, schedules

TOKEN = "schemathesis-0123456789"
RUN_SECONDS = 300
MAX_EXAMPLES = "3"  # of each operation; the coverage phase adds some hundred requests of its own
# A value that fits its schema can still be refused: no job function, no queue, a time in no year.
SETTINGS = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "404", "409", "422"]

[[operations]]
include-name = "GET /jobs/{job_id}/wait"
parameters = { "query.timeout" = 0 }
"""


@pytest.fixture(scope="module")
def schemathesis(python):
    return Path(python("schemathesis>=4.30,<5", alone=True)).with_name("schemathesis")


@pytest.fixture
def address(gunicorn):
    """The address of the API, which gunicorn serves."""
    return gunicorn(RQJOBS_API_TOKEN=f"tests:admin:{TOKEN}").address + "/api"


def test_it_finds_nothing(schemathesis, address, tmp_path, redis):
    rqjobs.enqueue("sample_jobs.ok", job_id="plain")
    schedules.add("hourly", every(hours=1), "sample_jobs.ok")
    settings = tmp_path / "schemathesis.toml"
    settings.write_text(SETTINGS)
    done = subprocess.run(
        [
            schemathesis,
            "--config-file",
            settings,
            "run",
            f"{address}/openapi.json",
            "--header",
            f"Authorization: Bearer {TOKEN}",
            "--checks",
            "all",
            "--exclude-checks",
            "ignored_auth",  # it sends so many wrong tokens that it gets 429
            "--phases",
            "coverage,fuzzing",
            "--generation-deterministic",
            "--max-examples",
            MAX_EXAMPLES,
            "--no-color",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=RUN_SECONDS,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr
