"""Virtual environments with third-party packages, created once and kept under `build/clients`.

`make test-clients` runs these tests. `make test` does not, because they install packages from the
network.
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
RUN_SECONDS = 240


@pytest.fixture(scope="session")
def python():
    """A function that creates an environment with these requirements, and returns its Python.

    The environment also has the packages of this one. With `alone=True` it has only the
    requirements: neither rqjobs nor the versions that rqjobs requires.
    """

    def create(*requirements, alone=False):
        base = sysconfig.get_path("purelib")
        key = hashlib.sha256(repr((requirements, alone, sys.version, base)).encode()).hexdigest()[
            :12
        ]
        home = ENVIRONMENTS / key
        home.parent.mkdir(parents=True, exist_ok=True)
        with home.with_suffix(".lock").open("w") as lock:
            # Another process of this test run may be creating the same environment.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (home / "ready").exists():
                _install(home, requirements, None if alone else base)
                (home / "ready").touch()
        return str(home / "bin" / "python")

    return create


def _install(home, requirements, base):
    """Create the environment; `base` is a folder of packages that it also uses, with pip."""
    venv.create(home, clear=True, with_pip=base is None)
    if base:
        own = next(home.glob("lib/python*/site-packages"))
        (own / "base.pth").write_text(f"{base}\n{CHECKOUT}\n")
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
    """A function that runs a Python program with this folder on its path; returns its stdout."""

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
