"""Generated secrets: made once, and kept in the data folder for all processes of that folder."""

from __future__ import annotations

import fcntl
import os
import secrets
import sys
from pathlib import Path

from rqjobs import config, connection

SECRET_BYTES = 18
MIN_SECRET_CHARACTERS = 16


def generated_secret(name: str, setting: str) -> str:
    """The secret in the file `name` of the data folder; the first process to ask makes it.

    Only the file's owner can read it. If the folder cannot be used, the secret is temporary and
    belongs to this process; a message on stderr then names the `setting` to use instead.
    """
    new = secrets.token_urlsafe(SECRET_BYTES)
    try:
        connection.DATA_FOLDER.mkdir(mode=0o700, exist_ok=True)
        return _read_or_write(connection.DATA_FOLDER / name, new)
    except (OSError, UnicodeError) as error:
        print(
            f"rqjobs: {error}. This process uses a temporary secret, so other processes reject its "
            f"logins. Set {setting}",
            file=sys.stderr,
            flush=True,
        )
        return new


def admin_password() -> str:
    """The password that is used without RQJOBS_ADMIN_PASSWORD: the same at each start."""
    return generated_secret("admin-password", "RQJOBS_ADMIN_PASSWORD")


def secret_key() -> str:
    """The secret key of this installation: SECRET_KEY, or the generated one."""
    given = config.current().secret_key
    return given or generated_secret("secret-key", "SECRET_KEY, the same everywhere")


def _read_or_write(path: Path, new: str) -> str:
    """The secret in the file, or `new` after it was written there. A lock makes this one step."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "r+", encoding="ascii") as file:
        about = os.fstat(descriptor)
        if about.st_uid != os.geteuid() or about.st_mode & 0o077:
            raise PermissionError(f"{path} must be yours, and readable by you only (chmod 600)")
        fcntl.flock(file, fcntl.LOCK_EX)
        old = file.read().strip()
        if len(old) >= MIN_SECRET_CHARACTERS:
            return old
        file.seek(0)
        file.truncate()
        file.write(new)
        return new
