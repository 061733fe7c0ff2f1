"""The plots of `make bench`: SVG, written as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

WIDTH_PIXELS = 840
LEFT_PIXELS = 190
RIGHT_PIXELS = 110
TOP_PIXELS = 64
ROW_PIXELS = 30
OWN_COLOUR = "#1d4ed8"
OTHER_COLOUR = "#94a3b8"
TEXT_COLOUR = "#1e293b"
LINE_COLOUR = "#e2e8f0"
BACKGROUND_COLOUR = "#ffffff"
Labels = Sequence[tuple[float, str]]  # values on an axis, each with its label


def text(
    x: float, y: float, content: str, size: int = 13, anchor: str = "start", bold: bool = False
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"{weight}>'
        f"{escape(content)}</text>"
    )


def box(x: float, y: float, width: float, height: float, colour: str, opacity: float = 1) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{height:.1f}" rx="2" '
        f'fill="{colour}" fill-opacity="{opacity}"/>'
    )


def line(
    x1: float, y1: float, x2: float, y2: float, colour: str = LINE_COLOUR, width: float = 1
) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width}"/>'
    )


def page(title: str, note: str, height: float, parts: list[str]) -> str:
    """A whole SVG file: the title, a line of explanation, and the parts of the plot."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH_PIXELS} {height:.0f}" '
            f'fill="{TEXT_COLOUR}" font-family="system-ui, sans-serif" role="img" '
            f'aria-label="{escape(title)}">',
            box(0, 0, WIDTH_PIXELS, height, BACKGROUND_COLOUR),
            text(20, 28, title, 17, bold=True),
            text(20, 48, note, 12),
            *parts,
            "</svg>\n",
        ]
    )


def x_axis(labels: Labels, to_x: Callable[[float], float], top: float, bottom: float) -> list[str]:
    """Vertical lines, with their labels below."""
    return [
        part
        for value, label in labels
        for part in (
            line(to_x(value), top, to_x(value), bottom),
            text(to_x(value), bottom + 16, label, 11, "middle"),
        )
    ]


def round_values(maximum: float) -> Labels:
    """About four round values, from 0 to at least `maximum`."""
    power = 10 ** math.floor(math.log10(maximum))
    step = next(power * share for share in (0.25, 0.5, 1, 2, 5) if maximum / (power * share) <= 5)
    return [
        (number * step, f"{number * step:,.0f}") for number in range(math.ceil(maximum / step) + 1)
    ]


def bar_colour(name: str) -> str:
    if name.startswith("rqjobs"):
        return OWN_COLOUR
    return OTHER_COLOUR


def throughput(bars: list[tuple[str, float | None, float | None]], note: str) -> str:
    """Two bars for each system: persistence off, and everysec. Rates are in jobs per second."""
    labels = round_values(max(value for _, *pair in bars for value in pair if value))
    bottom = TOP_PIXELS + ROW_PIXELS * len(bars) + 6

    def to_x(value: float) -> float:
        return LEFT_PIXELS + value / labels[-1][0] * (WIDTH_PIXELS - LEFT_PIXELS - RIGHT_PIXELS)

    parts = x_axis(labels, to_x, TOP_PIXELS, bottom)
    for number, (name, off, everysec) in enumerate(bars):
        y = TOP_PIXELS + 4 + number * ROW_PIXELS
        bold = name.startswith("rqjobs")
        parts.append(text(LEFT_PIXELS - 10, y + 16, name, anchor="end", bold=bold))
        for value, offset, opacity in ((off, 0, 1.0), (everysec, 12, 0.5)):
            if value:
                width = to_x(value) - LEFT_PIXELS
                parts.append(box(LEFT_PIXELS, y + offset, width, 11, bar_colour(name), opacity))
                parts.append(text(to_x(value) + 5, y + offset + 9.5, f"{value:,.0f}", 10))
    return page("Jobs per second", note, bottom + 28, parts)


def backlogs(series: dict[str, list[tuple[int, float]]], note: str) -> str:
    """Jobs per second by the length of the queue, on a logarithmic axis."""
    labels = round_values(max(rate for points in series.values() for _, rate in points))
    lengths = sorted({length for points in series.values() for length, _ in points})
    bottom = TOP_PIXELS + 220
    low = math.log(lengths[0])
    high = math.log(lengths[-1])

    def to_x(length: float) -> float:
        share = (math.log(length) - low) / max(high - low, 1e-9)
        return LEFT_PIXELS + share * (WIDTH_PIXELS - LEFT_PIXELS - RIGHT_PIXELS)

    def to_y(rate: float) -> float:
        return bottom - rate / labels[-1][0] * (bottom - TOP_PIXELS)

    parts = x_axis([(length, f"{length:,}") for length in lengths], to_x, TOP_PIXELS, bottom)
    for value, label in labels:
        parts += [
            line(LEFT_PIXELS, to_y(value), WIDTH_PIXELS - RIGHT_PIXELS, to_y(value)),
            text(LEFT_PIXELS - 8, to_y(value) + 4, label, 11, "end"),
        ]
    for name, points in series.items():
        spots = [(to_x(length), to_y(rate)) for length, rate in sorted(points)]
        parts += curve(name, spots, bar_colour(name))
    return page("Jobs per second by jobs waiting", note, bottom + 28, parts)


def curve(name: str, spots: list[tuple[float, float]], colour: str) -> list[str]:
    """A line through the spots, with the name at its end."""
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    return [
        f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in spots),
        text(spots[-1][0] + 10, spots[-1][1] + 4, name, bold=True),
    ]


def latencies(series: list[tuple[str, list[float]]], note: str) -> str:
    """Median, middle half and 1st to 99th percentile of each system's milliseconds.

    The axis is logarithmic.
    """
    low = math.floor(math.log10(min(min(values) for _, values in series)))
    high = math.ceil(math.log10(max(max(values) for _, values in series)))
    bottom = TOP_PIXELS + ROW_PIXELS * len(series) + 6

    def to_x(value: float) -> float:
        share = (math.log10(value) - low) / (high - low)
        return LEFT_PIXELS + share * (WIDTH_PIXELS - LEFT_PIXELS - RIGHT_PIXELS)

    powers = [(10.0**power, f"{10.0**power:g} ms") for power in range(low, high + 1)]
    parts = x_axis(powers, to_x, TOP_PIXELS, bottom)
    for number, (name, values) in enumerate(series):
        y = TOP_PIXELS + ROW_PIXELS * (number + 0.5)
        ordered = sorted(values)
        median = ordered[len(values) // 2]
        p99 = ordered[int(0.99 * len(values))]
        x1, x25, x50, x75, x99 = (
            to_x(ordered[int(share * len(values))]) for share in (0.01, 0.25, 0.5, 0.75, 0.99)
        )
        bold = name == "rqjobs"
        colour = OWN_COLOUR if bold else OTHER_COLOUR
        parts += [
            text(LEFT_PIXELS - 10, y + 5, name, anchor="end", bold=bold),
            line(x1, y, x99, y, colour, 2),
            box(x25, y - 7, x75 - x25, 14, colour, 0.55),
            box(x50 - 1.5, y - 9, 3, 18, colour),
            text(WIDTH_PIXELS - RIGHT_PIXELS + 6, y + 4, f"{median:.1f} / {p99:.1f} ms", 11),
        ]
    return page("From sending a job to its first line", note, bottom + 28, parts)
