"""Secrets that nobody set: made once, and kept in the data folder, so that every process started there has the same."""

from __future__ import annotations

import fcntl
import os
import secrets
import sys

from rqjobs import connection

BYTES = 18  # of chance in one
SHORTEST_CHARACTERS = 16


def kept(name: str, setting: str) -> str:
    """The secret `name` of this folder. Where the folder cannot be used, one of this process's own, which says so.

    The file can be read by its owner only. Of several processes that start at once, one makes it.
    """
    made = secrets.token_urlsafe(BYTES)
    path = connection.DATA_FOLDER / name
    try:
        connection.DATA_FOLDER.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "r+", encoding="ascii") as file:
            about = os.fstat(descriptor)
            if about.st_uid != os.geteuid() or about.st_mode & 0o077:
                raise PermissionError(f"{path} must be yours, and readable by you only (chmod 600)")
            fcntl.flock(file, fcntl.LOCK_EX)
            found = file.read().strip()
            if len(found) < SHORTEST_CHARACTERS:
                found = made
                file.seek(0)
                file.truncate()
                file.write(found)
            return found
    except (OSError, UnicodeError) as error:
        print(
            f"rqjobs: {error}; so this process has a secret of its own, and no other process takes its logins. "
            f"Set {setting}",
            file=sys.stderr,
            flush=True,
        )
        return made
