"""The outbox with psycopg, the driver that most applications use with PostgreSQL.

The tests of this project use pg8000, which needs no compiled library.
"""

import subprocess
from pathlib import Path

import postgres
import pytest

CHECKOUT = Path(__file__).parents[2]
TESTS = "tests/integration/transactions/test_outbox.py"
SECONDS = 300
CHOSEN = "postgresql and same_time or two_phases"


@pytest.mark.skipif(not postgres.folder_of_programs(), reason="PostgreSQL is not installed")
def test_the_outbox_with_psycopg(python, environ):
    command = [python("psycopg[binary]>=3.1,<4"), "-m", "pytest", "-v", TESTS, "-k", CHOSEN]
    done = subprocess.run(
        command,
        env={**environ, "POSTGRES_DRIVER": "psycopg"},
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr
