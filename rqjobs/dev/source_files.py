"""The files whose change restarts the children of `rqjobs dev`."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from itertools import chain, islice
from pathlib import Path

from rqjobs.config import Config

WATCHED_MAX_FILES = 5_000
WATCHED_MAX_FOLDERS = 2_000
IGNORED_FOLDERS = ("__pycache__", "node_modules", "site-packages")
ENV_FILE = ".env"


def modification_times(settings: Config) -> dict[str, int]:
    """When `.env` and each Python file that the children may import were changed, in nanoseconds.

    The Python files are those below the working directory, and those of the packages of the jobs
    modules and of the Flask app. None of them is imported.
    """
    importlib.invalidate_caches()
    sys.path_importer_cache.pop("", None)
    names = list(settings.modules)
    if settings.flask_app:
        names.append(settings.flask_app)
    folders = [Path.cwd()]
    files = [Path(ENV_FILE)]
    for package in {re.split("[.:]", name)[0] for name in names}:
        spec = _find_spec(package)
        if spec is None or not spec.origin or Path(spec.origin).is_relative_to(Path.cwd()):
            continue
        if spec.submodule_search_locations:
            folders.append(Path(spec.origin).parent)
        else:
            files.append(Path(spec.origin))
    times = {}
    for path in islice(chain(files, *map(_python_files, folders)), WATCHED_MAX_FILES):
        with contextlib.suppress(OSError):
            times[str(path)] = path.stat().st_mtime_ns
    return times


def _find_spec(package: str) -> ModuleSpec | None:
    if package in sys.modules:
        return sys.modules[package].__spec__
    return importlib.util.find_spec(package)


def _python_files(folder: Path) -> Iterator[Path]:
    """The Python files below `folder`, without virtual environments, caches and hidden folders."""
    for home, folders, names in islice(os.walk(folder), WATCHED_MAX_FOLDERS):
        folders[:] = [name for name in folders if _is_source_folder(home, name)]
        yield from (Path(home, name) for name in names if name.endswith(".py"))


def _is_source_folder(home: str, name: str) -> bool:
    if name.startswith(".") or name in IGNORED_FOLDERS:
        return False
    return not os.path.exists(os.path.join(home, name, "pyvenv.cfg"))
