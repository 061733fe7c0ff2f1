"""Values as the pages show them: in Python's notation, nested parts folded, within bounds.

The only code of a value that runs is its `__repr__`. Hidden names (RQJOBS_HIDE) are applied here too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from rqjobs import config, hiding
from rqjobs.hiding import HIDDEN
from rqjobs.web.rendering import cut

MAX_PARTS = 400  # of one value, all levels together
MAX_SHOWN_LEVELS = 12
MAX_ITEMS = 100  # of one container
TEXT_MAX_CHARACTERS = 20_000  # of one value
PART_MAX_CHARACTERS = 4_000  # of one text within a container
INLINE_CHARACTERS = 72  # a container that fits on such a line is not folded
OPEN_LEVELS = 2
PREVIEW_CHARACTERS = 40
PREVIEW_PARTS = 8
BRACKETS: dict[Any, Any] = {
    list: "[]",
    tuple: "()",
    set: "{}",
    frozenset: ("frozenset({", "})"),
    dict: "{}",
}


@dataclasses.dataclass
class Part:
    """A value, or the rest of one. `label`: its key with the sign after it, such as "'a': ".

    A container has `parts` between `start` and `end`; others have all of their text in `start`.
    """

    label: str
    start: str
    end: str = ""
    parts: list[Part] = dataclasses.field(default_factory=list)
    size: int = 0  # the number of items of a container
    is_open: bool = False
    preview: str = ""  # the beginning of the folded parts
    is_note: bool = False  # not a part of the value


def show(value: Any) -> Part:
    """A value in Python's notation. It never raises."""
    return _Writer(config.current().hide).write("", value, 0)


def text(value: Any, max_characters: int = TEXT_MAX_CHARACTERS) -> str:
    """A value in one text, in Python's notation."""
    return cut("".join(_texts(show(value))), max_characters)


def _texts(part: Part) -> Iterator[str]:
    yield part.label + part.start
    for number, one in enumerate(part.parts):
        if number:
            yield ", "
        yield from _texts(one)
    yield part.end


class _Writer:
    """Writes one value within the bounds."""

    def __init__(self, names: tuple[str, ...]):
        self.names = names
        self.left = MAX_PARTS

    def write(self, label: str, value: Any, level: int) -> Part:
        self.left -= 1
        kind = type(value)
        if kind is str:
            limit = PART_MAX_CHARACTERS if level else TEXT_MAX_CHARACTERS
            return Part(label, _text(value, limit))
        if kind in BRACKETS:
            start, end = BRACKETS[kind]
            return self._container(Part(label, start, end), value, level)
        if dataclasses.is_dataclass(kind) and kind.__repr__ is not object.__repr__:
            return self._fields(label, value, level)
        return Part(label, _other(self.names, value))

    def _container(self, part: Part, value: Any, level: int) -> Part:
        part.size = len(value)
        if not value:
            return Part(part.label, repr(value))
        if type(value) is tuple and len(value) == 1:
            part.end = ",)"
        self._fill(part, _items(value), level)
        return part

    def _fields(self, label: str, value: Any, level: int) -> Part:
        kind = type(value)
        try:
            names = [field.name for field in dataclasses.fields(kind) if field.repr]
            items = [(f"{name}=", name, object.__getattribute__(value, name)) for name in names]
        except Exception:  # a field without a value
            return Part(label, _other(self.names, value))
        part = Part(label, f"{_class_name(kind)}(", ")", size=len(items))
        self._fill(part, items, level)
        return part

    def _fill(self, part: Part, items: Iterable[tuple[str, Any, Any]], level: int) -> None:
        """Add the items to a container, as many as there is room for."""
        shown = 0
        for label, key, value in items:
            if shown == MAX_ITEMS or self.left <= 0 or level >= MAX_SHOWN_LEVELS:
                break
            if hiding.is_hidden(self.names, key):
                part.parts.append(Part(label, HIDDEN))
            else:
                part.parts.append(self.write(label, value, level + 1))
            shown += 1
        if shown < part.size:
            part.parts.append(Part("", f"… {part.size - shown:,} more", is_note=True))
        part.is_open = level < OPEN_LEVELS
        self._put_on_one_line(part)
        if part.parts and level:
            beginning = "".join(islice(_texts(part.parts[0]), PREVIEW_PARTS)).replace("\n", " ")
            part.preview = f"{beginning[:PREVIEW_CHARACTERS]} …"

    def _put_on_one_line(self, part: Part) -> None:
        """Make a short container a text. Its parts are texts already, if they are short."""
        if any(one.parts or one.is_note for one in part.parts):
            return
        inner = ", ".join(one.label + one.start for one in part.parts)
        line = part.start + inner + part.end
        if len(line) <= INLINE_CHARACTERS and "\n" not in line:
            part.start, part.end, part.parts = line, "", []


def _items(value: Any) -> Iterator[tuple[str, Any, Any]]:
    """The label, the key and the value of each item of a container."""
    if type(value) is dict:
        for key, one in value.items():
            yield f"{_key(key)}: ", key, one
    else:
        for one in value:
            yield "", None, one


def _key(key: Any) -> str:
    if type(key) is str:
        return repr(cut(key, 200))
    return _other((), key)


def _text(value: str, max_characters: int) -> str:
    """A text as Python writes it. Several lines stay lines, within three quotes."""
    shown = value[:max_characters]
    rest = ""
    if len(value) > max_characters:
        rest = f"… ({len(value) - max_characters:,} more characters)"
    if "\n" not in shown.rstrip("\n"):
        return repr(shown) + rest
    # Text with both quotes is written between single ones.
    lines = [repr(line + "'\"")[1:-4].replace("\\'", "'") for line in shown.split("\n")]
    return '"""' + "\n".join(lines).replace('"""', '\\"""') + '"""' + rest


def _other(names: tuple[str, ...], value: Any) -> str:
    """The `repr` of a value. It may raise, be no text, or be long."""
    try:
        shown = repr(hiding.hide(names, value))
        return cut(shown, PART_MAX_CHARACTERS)
    except BaseException:  # of any class of the user's
        return f"<{_class_name(type(value))} that cannot be shown>"


def _class_name(kind: type) -> str:
    name = vars(type)["__name__"].__get__(kind)
    return cut(str(name), 200)
