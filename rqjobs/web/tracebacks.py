"""The text of a traceback in its parts: exceptions, and their frames, the user's own or a library's.

Any text can be read: parts without a form of Python's are kept as lines.
"""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import rqjobs
from rqjobs import config

MAX_SECTIONS = 50  # exceptions of one traceback
MAX_FRAMES = 400
CLASS_MAX_CHARACTERS = 200
BEGIN = re.compile(
    r"(?P<prefix>[ |+]*)(?:Exception Group )?Traceback \(most recent call last\):\s*"
)
FRAME = re.compile(
    r'(?P<prefix>[ |]*)File "(?P<file>[^"\n]+)", line (?P<line>\d+)(?:, in (?P<function>.*))?'
)
ERROR_LINE = re.compile(r"(?P<name>[A-Za-z_][\w.<>]*)(?:: (?P<message>.*))?", re.DOTALL)
SEPARATOR = re.compile(r"[ |]*\+[-+ ]*----(?: \d+ -+)?")
SEPARATOR_MAX_CHARACTERS = 200
RELATIONS = {
    "During handling of the above exception, another exception occurred:": "while this was handled",
    "The above exception was the direct cause of the following exception:": "this was the cause",
}
LIBRARY = re.compile(
    r"/(?:site|dist)-packages/|/lib(?:64)?/python3(?:\.\d+)?t?/|/python3\d+\.zip/|^<frozen "
)
STANDARD_LIBRARY = sysconfig.get_path("stdlib").replace("\\", "/") + "/"
OWN_PACKAGE = Path(rqjobs.__file__).parent.as_posix() + "/"
DEMO = "/rqjobs/demo.py"  # its functions are jobs like a user's


@dataclass
class Frame:
    """One call. `source`: the lines of its source, and the marks below them."""

    file: str
    line: int
    function: str
    is_own: bool
    source: list[str] = field(default_factory=list)

    @property
    def package(self) -> str:
        """The package of a library's frame, in short."""
        path = self.file.replace("\\", "/")
        for folder in ("/site-packages/", "/dist-packages/"):
            if folder in path:
                return path.rpartition(folder)[2].partition("/")[0].removesuffix(".py")
        if path.startswith(OWN_PACKAGE):
            return "rqjobs"
        return "Python"


@dataclass
class Frames:
    """Frames that follow each other: all of them the user's own, or all of libraries."""

    is_own: bool
    frames: list[Frame]

    @property
    def libraries(self) -> str:
        """The libraries of these frames, each once."""
        return ", ".join(dict.fromkeys(frame.package for frame in self.frames))


@dataclass
class Raised:
    """One exception of a traceback.

    `relation`: its relation to the exception after it, or "". `level`: 0, or its depth in
    groups of exceptions. `lines`: those before it, and those that were not understood.
    """

    relation: str = ""
    level: int = 0
    name: str = ""
    message: str = ""
    frames: list[Frame] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    @property
    def parts(self) -> list[Frames]:
        """Its frames in groups: the user's own, or those of libraries."""
        found: list[Frames] = []
        for frame in self.frames:
            if not found or found[-1].is_own is not frame.is_own:
                found.append(Frames(frame.is_own, []))
            found[-1].frames.append(frame)
        return found


@dataclass(frozen=True)
class Traceback:
    """A traceback. `last` is the exception that ended the job; `before` are the others, in order."""

    last: Raised
    before: list[Raised]
    within: list[Raised]  # the exceptions of a group, after it


def parse(text: str) -> Traceback:
    """The parts of a traceback's text. It never raises."""
    reader = _Reader()
    for line in text.splitlines():
        reader.read(line)
    sections = reader.end()
    position = max(number for number, one in enumerate(sections) if not one.level)
    return Traceback(sections[position], sections[:position], sections[position + 1 :])


class _Reader:
    """Reads the lines of a traceback one after the other."""

    def __init__(self) -> None:
        self.sections = [Raised()]
        self.error: list[str] = []  # the lines of the exception after its frames
        self.in_frames = False
        self.number_of_frames = 0

    def read(self, line: str) -> None:
        if line.strip() in RELATIONS:
            self._end_section()
            self.sections[-1].relation = RELATIONS[line.strip()]
        elif begin := BEGIN.fullmatch(line):
            self._begin_section(begin["prefix"])
        elif self._ends_section(line):
            self._end_section()
        elif (found := FRAME.fullmatch(line)) and self.in_frames:
            self._add_frame(found)
        elif self.in_frames and self._is_source(line):
            self._add_source(line)
        elif self.in_frames or self.error:
            self.in_frames = False
            self.error.append(_without_prefix(line, self.sections[-1].level))
        elif line.strip() and not _is_separator(line):
            self.sections[-1].lines.append(line)

    def _ends_section(self, line: str) -> bool:
        """Whether a line is the border between two exceptions of a group, or before the first."""
        is_border = self.sections[-1].level > 0 or line.startswith("  +-+-")
        return is_border and _is_separator(line)

    def _begin_section(self, prefix: str) -> None:
        self._end_section()
        if len(self.sections) < MAX_SECTIONS:
            is_first = self.sections == [Raised()]
            level = max(0, prefix.find("|") // 2 - 1)  # of a group's: "    | Traceback"
            section = Raised(level=level)
            if is_first:
                self.sections = [section]
            else:
                self.sections.append(section)
        self.in_frames = True

    def _add_frame(self, found: re.Match[str]) -> None:
        if self.number_of_frames < MAX_FRAMES:
            self.number_of_frames += 1
            file = found["file"]
            frame = Frame(file, int(found["line"][:9]), found["function"] or "", is_own(file))
            self.sections[-1].frames.append(frame)

    def _is_source(self, line: str) -> bool:
        """Whether a line among frames is indented, as source is, and the exception is not."""
        bare = _without_prefix(line, self.sections[-1].level)
        return not bare or bare.startswith("  ")

    def _add_source(self, line: str) -> None:
        bare = _without_prefix(line, self.sections[-1].level)
        if self.sections[-1].frames:
            self.sections[-1].frames[-1].source.append(bare.removeprefix("    "))
        elif bare.strip():
            self.sections[-1].lines.append(bare)

    def _end_section(self) -> None:
        text = "\n".join(self.error).strip("\n")
        self.error = []
        self.in_frames = False
        if not text:
            return
        section = self.sections[-1]
        found = ERROR_LINE.fullmatch(text)
        if found and len(found["name"]) <= CLASS_MAX_CHARACTERS:
            section.name, section.message = found["name"], found["message"] or ""
        else:
            section.message = text

    def end(self) -> list[Raised]:
        """All exceptions. There is always one, and one of them is in no group."""
        self._end_section()
        last = self.sections[-1]
        if not last.frames and not last.name and not last.message:
            last.message = "\n".join(last.lines)
            last.lines = []
        if all(one.level for one in self.sections):
            self.sections[0].level = 0
        return self.sections


def _is_separator(line: str) -> bool:
    line = line[:SEPARATOR_MAX_CHARACTERS].rstrip()
    return SEPARATOR.fullmatch(line) is not None


def _without_prefix(line: str, level: int) -> str:
    """A line without the bars of the groups around it, and without their indentation."""
    if "|" not in line[: 8 * (level + 1)]:
        return line
    match = re.match(r"[ |+]*\| ?", line[: 4 * (level + 2)])
    return line[match.end() :] if match else line


def is_own(file: str) -> bool:
    """Whether a file is the user's own: outside the libraries, or of a module of RQJOBS_MODULES.

    The file is one of the worker's machine, which may be another one.
    """
    path = file.replace("\\", "/")
    if path.endswith(DEMO):
        return True
    if path.startswith((OWN_PACKAGE, STANDARD_LIBRARY)) or LIBRARY.search(path):
        return any(f"-packages/{package}" in path for package in _own_packages())
    return True


def _own_packages() -> Iterable[str]:
    packages = {name.partition(".")[0] for name in config.current().modules} - {"rqjobs"}
    return [f"{package}{end}" for package in packages for end in ("/", ".py")]
