"""The plots of `make bench`: SVG, written as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

WIDTH, LEFT, RIGHT, TOP, LINE = 840, 190, 110, 64, 30  # pixels
OURS, OTHER, INK, FAINT = "#1d4ed8", "#94a3b8", "#1e293b", "#e2e8f0"
Marks = Sequence[tuple[float, str]]  # where on an axis, and what is written there


def text(
    x: float, y: float, words: str, size: int = 13, anchor: str = "start", bold: bool = False
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"{weight}>{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, colour: str, opacity: float = 1) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{height:.1f}" rx="2" fill="{colour}" '
        f'fill-opacity="{opacity}"/>'
    )


def line(x1: float, y1: float, x2: float, y2: float, colour: str = FAINT, width: float = 1) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width}"/>'
    )


def page(title: str, note: str, height: float, parts: list[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" fill="{INK}" '
            f'font-family="system-ui, sans-serif" role="img" aria-label="{escape(title)}">',
            box(0, 0, WIDTH, height, "#ffffff"),
            text(20, 28, title, 17, bold=True),
            text(20, 48, note, 12),
            *parts,
            "</svg>\n",
        ]
    )


def across(marks: Marks, place: Callable[[float], float], top: float, bottom: float) -> list[str]:
    """Upright lines with their values below."""
    return [
        part
        for value, words in marks
        for part in (
            line(place(value), top, place(value), bottom),
            text(place(value), bottom + 16, words, 11, "middle"),
        )
    ]


def steps(most: float) -> Marks:
    """Some four round values from 0 to beyond `most`."""
    step = 10 ** math.floor(math.log10(most))
    step = next(step * share for share in (0.25, 0.5, 1, 2, 5) if most / (step * share) <= 5)
    return [
        (number * step, f"{number * step:,.0f}") for number in range(math.ceil(most / step) + 1)
    ]


def throughput(bars: list[tuple[str, float | None, float | None]], note: str) -> str:
    """For each system two bars: persistence off, and everysec."""
    marks = steps(max(value for _, *pair in bars for value in pair if value))
    bottom = TOP + LINE * len(bars) + 6

    def place(value: float) -> float:
        return LEFT + value / marks[-1][0] * (WIDTH - LEFT - RIGHT)

    parts = across(marks, place, TOP, bottom)
    for number, (name, off, everysec) in enumerate(bars):
        y = TOP + 4 + number * LINE
        ours = name.startswith("rqjobs")
        parts.append(text(LEFT - 10, y + 16, name, anchor="end", bold=ours))
        for value, offset, opacity in ((off, 0, 1.0), (everysec, 12, 0.5)):
            if value:
                parts.append(
                    box(LEFT, y + offset, place(value) - LEFT, 11, OURS if ours else OTHER, opacity)
                )
                parts.append(text(place(value) + 5, y + offset + 9.5, f"{value:,.0f}", 10))
    return page("Jobs per second", note, bottom + 28, parts)


def backlogs(series: dict[str, list[tuple[int, float]]], note: str) -> str:
    """Throughput by the length of the queue."""
    marks = steps(max(rate for points in series.values() for _, rate in points))
    lengths = sorted({length for points in series.values() for length, _ in points})
    bottom, low, high = TOP + 220, math.log(lengths[0]), math.log(lengths[-1])

    def place(length: float) -> float:
        return LEFT + (math.log(length) - low) / max(high - low, 1e-9) * (WIDTH - LEFT - RIGHT)

    def level(rate: float) -> float:
        return bottom - rate / marks[-1][0] * (bottom - TOP)

    parts = across([(length, f"{length:,}") for length in lengths], place, TOP, bottom)
    for value, words in marks:
        parts += [
            line(LEFT, level(value), WIDTH - RIGHT, level(value)),
            text(LEFT - 8, level(value) + 4, words, 11, "end"),
        ]
    for name, points in series.items():
        colour = OURS if name == "rqjobs" else OTHER
        spots = [(place(length), level(rate)) for length, rate in sorted(points)]
        parts.append(
            f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in spots)}" fill="none" '
            f'stroke="{colour}" stroke-width="2.5"/>'
        )
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in spots]
        parts.append(text(spots[-1][0] + 10, spots[-1][1] + 4, name, bold=True))
    return page("Jobs per second by jobs waiting", note, bottom + 28, parts)


def latencies(found: list[tuple[str, list[float]]], note: str) -> str:
    """For each system the middle, the middle half, and all but the first and last hundredth, on a logarithmic axis."""
    low = math.floor(math.log10(min(min(values) for _, values in found)))
    high = math.ceil(math.log10(max(max(values) for _, values in found)))
    bottom = TOP + LINE * len(found) + 6

    def place(value: float) -> float:
        return LEFT + (math.log10(value) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    parts = across(
        [(10.0**power, f"{10.0**power:g} ms") for power in range(low, high + 1)], place, TOP, bottom
    )
    for number, (name, values) in enumerate(found):
        y, ours = TOP + LINE * (number + 0.5), name == "rqjobs"
        ordered = sorted(values)
        first, quarter, middle, three, last = (
            place(ordered[int(share * len(values))]) for share in (0.01, 0.25, 0.5, 0.75, 0.99)
        )
        colour = OURS if ours else OTHER
        parts += [
            text(LEFT - 10, y + 5, name, anchor="end", bold=ours),
            line(first, y, last, y, colour, 2),
            box(quarter, y - 7, three - quarter, 14, colour, 0.55),
            box(middle - 1.5, y - 9, 3, 18, colour),
            text(
                WIDTH - RIGHT + 6,
                y + 4,
                f"{ordered[len(values) // 2]:.1f} / {ordered[int(0.99 * len(values))]:.1f} ms",
                11,
            ),
        ]
    return page("From sending a job to its first line", note, bottom + 28, parts)
