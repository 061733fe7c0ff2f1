"""The outbox with psycopg, the driver that most applications use with PostgreSQL.

The tests of this project use pg8000, which needs no compiled library.
"""

from pathlib import Path

import postgres
import pytest

CHECKOUT = Path(__file__).parents[2]
TESTS = "tests/integration/transactions/test_outbox.py"
CHOSEN = "postgresql and same_time or two_phases"


@pytest.mark.skipif(not postgres.folder_of_programs(), reason="PostgreSQL is not installed")
def test_the_outbox_with_psycopg(python, run, monkeypatch):
    monkeypatch.chdir(CHECKOUT)
    executable = python("psycopg[binary]>=3.1,<4")
    env = {"POSTGRES_DRIVER": "psycopg"}
    shown = run(executable, "-m", "pytest", "-v", TESTS, "-k", CHOSEN, env=env)
    assert "2 passed" in shown
