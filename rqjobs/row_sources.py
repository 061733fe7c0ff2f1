"""Rows with positions: the things that `resumable` can loop over, and continue in the middle of."""

from __future__ import annotations

import io
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rqjobs import serializers, texts

KEY_MAX_BYTES = 2048  # of a key as JSON
MAX_INTEGER = 2**63 - 1
OFFSET_BITS = 64  # of a text file's position; the others are its decoder's
END = object()  # taken behind the last row


class RowSource:
    """Rows that are taken one by one, each behind a position.

    `kind` is stored with a cursor, which means nothing to another kind of source. `total`: the
    number of rows, or of bytes if `unit` is "bytes"; None if it is not known. `taken` counts the
    rows. It is raised before the position moves: a time limit may interrupt between any two lines,
    and then a row may be repeated, but none skipped.
    """

    kind = ""
    unit = ""
    total: float | None = None
    taken = 0

    def move_to(self, cursor: Any) -> None:
        """Continue behind a cursor of an earlier run.

        Raises:
            ValueError, TypeError, OverflowError, OSError: it is not a cursor of these rows.
        """
        raise NotImplementedError

    def take(self) -> Any:
        """The next row, or `END`."""
        raise NotImplementedError

    def cursor(self) -> Any:
        """The position behind the last row that was taken."""
        raise NotImplementedError

    def cursor_before(self) -> Any:
        """The position in front of the last row that was taken."""
        raise NotImplementedError


class SequenceRows(RowSource):
    """The items of a sequence. The cursor is an index."""

    kind = "sequence"

    def __init__(self, rows: Sequence[Any]):
        self.rows = rows
        self.index = 0
        self.total = len(rows)

    def move_to(self, cursor: Any) -> None:
        self.index = _whole_number(cursor)

    def take(self) -> Any:
        if self.index >= len(self.rows):
            return END
        row = self.rows[self.index]
        self.taken += 1
        self.index += 1
        return row

    def cursor(self) -> int:
        return self.index

    def cursor_before(self) -> int:
        return self.index - 1


class FileRows(RowSource):
    """The lines of an open file, from its present position. The cursor is a position of the file.

    A text file takes long to tell its position, so it is asked for as rarely as possible.

    Raises:
        TypeError: the file cannot seek.
        ValueError: the file cannot tell its position, because `next` has read a line of it.
    """

    kind = "file"

    def __init__(self, file: Any):
        self.file = file
        if not file.seekable():
            raise TypeError(
                "resumable() cannot go back in this file, which cannot seek; save it to disk first"
            )
        try:
            self.known: int = file.tell()  # a position
        except OSError:
            raise ValueError(
                "the position of this file is not known after next(file); read its first line "
                "with file.readline()"
            ) from None
        self.lines = 0  # taken since the known position
        self.total = _size(file)
        if self.total is not None:
            self.unit = "bytes"

    def move_to(self, cursor: Any) -> None:
        begin = self.known
        self.known = _whole_number(cursor)
        try:
            self.file.seek(self.known)
        except Exception:
            self.known = begin
            self.file.seek(begin)
            raise

    def take(self) -> Any:
        self.taken += 1
        self.lines += 1
        line = self.file.readline()
        if line:
            return line
        self.taken -= 1
        self.lines -= 1
        return END

    def cursor(self) -> int:
        position: int = self.file.tell()
        self.lines = 0
        self.known = position
        return position

    def cursor_before(self) -> int:
        """Read up to that position again. The file is left where it is."""
        behind = self.file.tell()
        self.file.seek(self.known)
        for _ in range(self.lines - 1):
            self.file.readline()
        before: int = self.file.tell()
        self.file.seek(behind)
        return before


class KeyedRows(RowSource):
    """Rows in the order of a key, of a function that returns those behind a key.

    The cursor is the key of the last row.
    """

    kind = "keys"

    def __init__(self, fetch: Callable[[Any], Iterable[tuple[Any, Any]]]):
        self.fetch = fetch
        self.keys: tuple[Any, Any] = (None, None)  # of the last two rows
        self.batch: deque[tuple[Any, Any]] = deque()

    def move_to(self, cursor: Any) -> None:
        self.keys = (None, cursor)

    def take(self) -> Any:
        if not self.batch:
            self.batch.extend(self._fetch_batch())
        if not self.batch:
            return END
        key, row = self.batch.popleft()
        self.taken += 1
        self.keys = (self.keys[1], key)
        return row

    def _fetch_batch(self) -> list[tuple[Any, Any]]:
        """The next rows, with their keys checked."""
        last = self.keys[1]
        found = self.fetch(last)
        if not isinstance(found, Iterable) or isinstance(found, str | bytes | Mapping):
            raise _not_pairs(found)
        pairs = []
        for pair in found:
            try:
                key, row = pair
            except (TypeError, ValueError):
                raise _not_pairs(pair) from None
            pairs.append((key, row))
        for key, _ in pairs:
            check_key(key)
            if key == last:
                raise ValueError(
                    f"fetch(after) of resumable() returned the key {key!r:.100} again; it must "
                    f"return the rows behind `after`, in the order of a key that no two rows share"
                )
            last = key
        return pairs

    def cursor(self) -> Any:
        return self.keys[1]

    def cursor_before(self) -> Any:
        return self.keys[0]


def source_of(rows: Any) -> RowSource:
    """The source for what a program has given to `resumable`.

    Raises:
        TypeError: it has no positions.
        ValueError: see `FileRows`.
    """
    if isinstance(rows, Sequence) and not isinstance(rows, str | bytes | bytearray | memoryview):
        return SequenceRows(rows)
    if all(
        callable(getattr(rows, name, None)) for name in ("readline", "seek", "tell", "seekable")
    ):
        return FileRows(rows)
    if callable(rows) and not isinstance(rows, type):
        return KeyedRows(rows)
    raise TypeError(
        f"resumable() cannot continue in the middle of a {texts.class_name(type(rows))}; pass a "
        f"list, a range, an open file, or a function fetch(after) that returns the next (key, row) "
        f"pairs of a query"
    )


def check_key(key: Any) -> None:
    """Check that the key of a row can be stored as a cursor.

    Raises:
        TypeError: it is None, or not a value that a job's argument may have.
        ValueError: it is too long, or has a number that is not finite.
    """
    if key is None:
        raise TypeError("a key of resumable() is None; order the rows by a key that each row has")
    size = len(json.dumps(serializers.encode(key, "a key of resumable()"), allow_nan=False))
    if size > KEY_MAX_BYTES:
        raise ValueError(
            f"a key of resumable() is {size:,} bytes, more than {KEY_MAX_BYTES:,}; order the rows "
            f"by a shorter key, for example an id"
        )


def check_number(what: str, value: Any) -> float:
    """A number of rows, of any plain type.

    Raises:
        TypeError: it is not a number.
        ValueError: it is negative, too large or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        kind = texts.class_name(type(value))
        raise TypeError(f"{what} must be a number, not a {kind}; convert it with int()")
    if not 0 <= value <= MAX_INTEGER:  # nor is it for NaN
        raise ValueError(f"{what} must be 0 or more, and less than 2**63, not {value!r:.50}")
    if isinstance(value, int):
        return int(value)
    return float(value)


def offset_of(cursor: int) -> int:
    """The byte at which a position of a file is, or lies shortly before."""
    return cursor % 2**OFFSET_BITS


def _not_pairs(found: Any) -> TypeError:
    return TypeError(
        f"fetch(after) of resumable() must return a list of (key, row) pairs, empty at the end, not "
        f"{found!r:.80}"
    )


def _whole_number(cursor: Any) -> int:
    if type(cursor) is not int or cursor < 0:
        raise ValueError(f"{cursor!r:.50} is not a position")
    return cursor


def _size(file: Any) -> int | None:
    """The bytes of a file on disk; None for anything else, such as a compressed file."""
    buffer = getattr(file, "buffer", file)
    raw = getattr(buffer, "raw", buffer)
    if not isinstance(raw, io.FileIO):
        return None
    return os.fstat(raw.fileno()).st_size or None
