"""A real PostgreSQL for the tests, on a private socket."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

USER = "nobody"  # initdb refuses root


def folder_of_programs():
    """The newest installed PostgreSQL's programs; None if there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    if found:
        return found[-1].parent
    path = shutil.which("initdb")
    return path and Path(path).parent


def _as_another_user(home):
    """The beginning of a command that root's programs refuse; the folder becomes that user's."""
    if os.geteuid() != 0:
        return []
    if not os.stat(os.devnull).st_mode & 0o002:  # in some containers only root may write to it
        return ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
    user = pwd.getpwnam(USER)
    os.chown(home, user.pw_uid, user.pw_gid)
    return ["setpriv", f"--reuid={USER}", f"--regid={user.pw_gid}", "--clear-groups"]


@contextlib.contextmanager
def server(programs):
    """Run a server; yields its URL for SQLAlchemy. It stops within its clients' next commands."""
    home = Path(tempfile.mkdtemp(prefix="rqjobs-postgres-"))
    prefix = _as_another_user(home)
    initdb = ["initdb", "--no-sync", "-A", "trust", "-U", "postgres", "-D", home / "data"]
    subprocess.run(
        [*prefix, programs / initdb[0], *initdb[1:]],
        cwd=home,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    options = {"listen_addresses": "", "unix_socket_directories": home, "fsync": "off"}
    words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    words += ["-c", "max_prepared_transactions=10"]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [*prefix, programs / "postgres", "-D", home / "data", *words],
            cwd=home,
            stdout=log,
            stderr=log,
        )
    try:
        socket = home / ".s.PGSQL.5432"
        ready = [programs / "pg_isready", "-q", "-h", home]
        while subprocess.run(ready).returncode:
            assert process.poll() is None, (home / "log").read_text()
        if os.environ.get("POSTGRES_DRIVER") == "psycopg":  # of tests/clients
            yield f"postgresql+psycopg://postgres@/postgres?host={home}"
        else:
            yield f"postgresql+pg8000://postgres@/postgres?unix_sock={socket}"
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait()
        shutil.rmtree(home, ignore_errors=True)
