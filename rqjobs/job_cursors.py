"""Cursors: where the next page of a list of jobs begins, as a text in an address.

A cursor comes from outside, so it is checked. It contains only positions: a forged one shows other
parts of the same list.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import zlib
from dataclasses import dataclass
from typing import Any

from rqjobs.job_filters import Filter, FilterError

CURSOR_MAX_CHARACTERS = 3500  # web servers refuse longer addresses
CURSOR_MAX_BYTES = 100_000  # of a cursor that is unpacked
COUNT_MAX = 2**53
MEMBER_MAX_BYTES = 1000


@dataclass
class Cursor:
    """The place where a list goes on: the position in each source that was begun; None at its end.

    `searched`: the jobs looked at on the pages before. `over`: how many of these were in sources
    of which all is listed.
    """

    marks: dict[str, list[bytes] | None]
    searched: int = 0
    over: int = 0

    def is_over(self, name: str) -> bool:
        """Whether all jobs of a source are listed."""
        return name in self.marks and self.marks[name] is None

    def position(self, name: str, is_list: bool) -> list[bytes] | None:
        """The position in a source; None at its beginning.

        Raises:
            FilterError: the position is of another kind of source.
        """
        position = self.marks.get(name)
        if position and (position[0] == b"listed") is not is_list:
            raise bad_cursor()
        return position


def bad_cursor() -> FilterError:
    return FilterError("after", "This link does not belong to this list; begin at its first page")


def digest_of(chosen: Filter) -> int:
    return zlib.crc32(json.dumps(chosen.params(), sort_keys=True).encode())


def write_cursor(chosen: Filter, cursor: Cursor) -> str:
    marks = {
        name: None if position is None else [word.decode("latin-1") for word in position]
        for name, position in cursor.marks.items()
    }
    words = [digest_of(chosen), cursor.searched, cursor.over, marks]
    text = json.dumps(words, separators=(",", ":"))
    packed = zlib.compress(text.encode(), 9)
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def read_cursor(chosen: Filter, after: str) -> Cursor:
    """The cursor in a text from outside.

    Raises:
        FilterError: it is not a cursor, or belongs to another filter.
    """
    if not after:
        return Cursor({})
    try:
        if len(after) > CURSOR_MAX_CHARACTERS:
            raise ValueError
        packed = base64.urlsafe_b64decode(after + "=" * (-len(after) % 4))
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(packed, CURSOR_MAX_BYTES)
        if not unpacker.eof or unpacker.unused_data:
            raise ValueError
        digest, searched, over, marks = json.loads(text)
        if digest != digest_of(chosen) or not isinstance(marks, dict):
            raise ValueError
        if not all(type(number) is int and 0 <= number < COUNT_MAX for number in (searched, over)):
            raise ValueError
        checked = {name: _check_position(position) for name, position in marks.items()}
        return Cursor(checked, searched, over)
    except (ValueError, TypeError, binascii.Error, zlib.error, RecursionError):
        raise bad_cursor() from None


def _check_position(stored: Any) -> list[bytes] | None:
    """A position as `search_jobs.lua` takes it.

    Raises:
        ValueError, TypeError: it is not a position.
    """
    if stored is None:
        return None
    if not isinstance(stored, list) or not all(isinstance(word, str) for word in stored):
        raise ValueError
    position = [word.encode("latin-1") for word in stored]
    shape = [len(position), max(map(len, position)) <= MEMBER_MAX_BYTES]
    if shape == [3, True] and stored[0] == "sorted":
        return position
    if shape == [3, True] and stored[0] == "ranked" and not math.isnan(float(stored[1])):
        return position
    numbers = [re.fullmatch("[0-9]{1,12}", word, re.ASCII) for word in stored[1:3]]
    if shape == [8, True] and stored[0] == "listed" and all(numbers):
        return position
    raise ValueError


def next_cursor(chosen: Filter, cursor: Cursor) -> tuple[str, str]:
    """The cursor of the next page as a text, "" if there is none; and the reason if one is missing."""
    if all(position is None for position in cursor.marks.values()):
        return "", ""
    # A source at its beginning needs no mark.
    cursor.marks = {name: position for name, position in cursor.marks.items() if position != []}
    text = write_cursor(chosen, cursor)
    if len(text) > CURSOR_MAX_CHARACTERS:
        return "", "To see more, choose a state or a queue: these are too many to go on with all."
    return text, ""
