"""Environments with other people's packages in them, made once and kept under `build/clients`.

`make test-clients` runs these tests; `make test` does not, because they install packages from the network.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
ENVIRONMENTS = CHECKOUT / "build" / "clients"
INSTALL_SECONDS = 300
RUN_SECONDS = 60


@pytest.fixture(scope="session")
def python():
    """Make an environment with these requirements on top of this one, and return its Python.

    With `alone=True` it has only them: neither rqjobs nor the versions that rqjobs asks for.
    """

    def make(*requirements, alone=False):
        below = sysconfig.get_path("purelib")
        key = hashlib.sha256(repr((requirements, alone, sys.version, below)).encode()).hexdigest()[
            :12
        ]
        home = ENVIRONMENTS / key
        home.parent.mkdir(parents=True, exist_ok=True)
        with home.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process of this test run may be making it
            if not (home / "ready").exists():
                _install(home, requirements, None if alone else below)
                (home / "ready").touch()
        return str(home / "bin" / "python")

    return make


def _install(home, requirements, below):
    venv.create(home, clear=True, with_pip=below is None)
    if below:  # pip is found there too
        own = next(home.glob("lib/python*/site-packages"))
        (own / "below.pth").write_text(f"{below}\n{CHECKOUT}\n")
    done = subprocess.run(
        [
            home / "bin" / "python",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            *requirements,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=INSTALL_SECONDS,
    )
    assert done.returncode == 0, f"pip could not install {', '.join(requirements)}:\n{done.stdout}"


@pytest.fixture
def run(environ):
    """Run a Python program in an environment, with this folder on its path; returns what it printed to stdout."""

    def call(executable, *arguments, env=None):
        done = subprocess.run(
            [executable, *arguments],
            env={**environ, **(env or {})},
            text=True,
            timeout=RUN_SECONDS,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


@pytest.fixture
def environ(environ):
    return {**environ, "PYTHONPATH": f"{environ['PYTHONPATH']}:{Path(__file__).parent}"}
