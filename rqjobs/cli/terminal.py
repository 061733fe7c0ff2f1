"""A full screen in a terminal, by plain escape codes. The terminal is restored at every end."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
import time
import tty
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

from rqjobs import processes

ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"  # the alternate screen, no cursor, no wrapping of lines
LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
HOME, CLEAR_LINE, CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
STYLES = {"bold": "1", "dim": "2", "red": "31", "yellow": "33", "reverse": "7"}
RESET = "\x1b[0m"
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
UNKNOWN_SIZE = (80, 24)
MIN_COLUMNS, MIN_LINES = 20, 5
MAX_COLUMNS, MAX_LINES = 1000, 500  # a terminal may report more


@dataclass(frozen=True)
class Line:
    """One line of the screen, and the style in which it is shown."""

    text: str = ""
    style: str = ""  # of `STYLES`; "" for none


def is_terminal() -> bool:
    """Whether input and output are a terminal that knows escape codes."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def width_of(text: str) -> int:
    """The columns that a printable text takes."""
    return sum(_columns(char) for char in text)


def _columns(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def fit(text: str, columns: int) -> str:
    """`text` cut or filled up to exactly this number of columns."""
    if width_of(text) <= columns:
        return text + " " * (columns - width_of(text))
    shown, left = "", max(columns - 1, 0)
    for char in text:
        left -= _columns(char)
        if left < 0:
            break
        shown += char
    shown += "…" if columns else ""
    return shown + " " * (columns - width_of(shown))


class Screen:
    """The alternate screen of this terminal, as a context manager.

    Signals only set flags, and end the wait for a key. At SIGTERM, SIGHUP and Ctrl-C `is_ending` is
    true, and `exit_code` what a shell expects then. Ctrl-Z gives the terminal back until the program
    is continued.
    """

    def __init__(self) -> None:
        self.is_ending = False
        self.exit_code = 0
        self.has_changed = False  # the size, or what the terminal shows
        self._must_stop = False
        self._colors = not os.environ.get("NO_COLOR")
        self._before: list[Any] = []
        self._handlers: dict[int, Any] = {}
        self._wakeup: processes.SignalPipe | None = None

    def __enter__(self) -> Screen:
        self._before = termios.tcgetattr(sys.stdin)
        self._wakeup = processes.SignalPipe()
        try:
            for number in (*ENDING_SIGNALS, signal.SIGINT):
                self._handlers[number] = signal.signal(number, self._end)
            self._handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, self._note_change)
            self._handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._note_stop)
            self._take()
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _take(self) -> None:
        tty.setcbreak(sys.stdin, termios.TCSANOW)
        self._write(ENTER)
        self.has_changed = True

    def _give_back(self) -> None:
        with contextlib.suppress(OSError, termios.error):  # the terminal may be gone
            self._write(RESET + LEAVE)
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)

    def _restore(self) -> None:
        self._give_back()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
        if self._wakeup:
            self._wakeup.close()
            self._wakeup = None

    # Signals

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.is_ending = True
        if number in ENDING_SIGNALS:
            self.exit_code = 128 + number

    def _note_change(self, number: int, frame: FrameType | None) -> None:
        self.has_changed = True

    def _note_stop(self, number: int, frame: FrameType | None) -> None:
        self._must_stop = True

    def _stop(self) -> None:
        """Stop at Ctrl-Z, and take the terminal again when the program is continued."""
        self._must_stop = False
        self._give_back()
        ours = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, ours)
        self._take()

    # Keys and lines

    def read_keys(self, seconds: float) -> str:
        """The keys that are pressed within `seconds`; "" for none, or if a signal has arrived."""
        assert self._wakeup
        ready = processes.readable([sys.stdin.fileno(), self._wakeup.reader], seconds)
        if self._wakeup.reader in ready:
            self._wakeup.drain()
        if self._must_stop:
            self._stop()
        if sys.stdin.fileno() not in ready:
            return ""
        data = os.read(sys.stdin.fileno(), 64)
        if not data:  # the terminal is gone
            self.is_ending = True
        return data.decode(errors="replace")

    def size(self) -> tuple[int, int]:
        """The columns and lines of the terminal, within bounds."""
        columns, lines = UNKNOWN_SIZE
        with contextlib.suppress(OSError):  # the terminal is gone, or does not say
            columns, lines = os.get_terminal_size(sys.stdout.fileno())
        if not columns or not lines:
            columns, lines = UNKNOWN_SIZE
        return (
            min(max(columns, MIN_COLUMNS), MAX_COLUMNS),
            min(max(lines, MIN_LINES), MAX_LINES),
        )

    def draw(self, lines: Sequence[Line]) -> None:
        """Show these lines, as many as there is room for, each cut to the width."""
        columns, rows = self.size()
        shown = [self._styled(line, columns) + CLEAR_LINE for line in lines[:rows]]
        self._write(HOME + "\r\n".join(shown) + CLEAR_BELOW)

    def _styled(self, line: Line, columns: int) -> str:
        text = fit(line.text, columns).rstrip()
        if line.style and self._colors:
            return f"\x1b[{STYLES[line.style]}m{text}{RESET}"
        return text

    def _write(self, text: str) -> None:
        """Write to the terminal, which may take a part at a time, or be slow."""
        data = text.encode(errors="replace")
        while data:
            try:
                data = data[os.write(sys.stdout.fileno(), data) :]
            except BlockingIOError:
                time.sleep(0.01)
