"""Charts as SVG, drawn by the server: no script, no style attribute, a text in place of the picture.

Colours are those of the classes in rqjobs.css, so a chart fits light and dark pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

BAR_WIDTH = 8  # units of the picture, of which the gap is `BAR_GAP`
BAR_GAP = 2
HEIGHT = 100


@dataclass(frozen=True)
class Bars:
    """One layer of stacked bars: a name, its numbers, and the class of its colour."""

    name: str
    numbers: Sequence[int]
    colour: str  # "good", "bad", "busy", "wait" or "dull"


def sparkline(values: Sequence[float], label: str) -> Markup:
    """A small line of numbers, as high as the greatest. `label` says what it shows, as a text."""
    top = max([*values, 1])
    width = max(len(values) - 1, 1)
    points = " ".join(
        f"{step},{20 - 18 * value / top:.1f}" for step, value in enumerate(values or [0])
    )
    return Markup(
        '<svg class="sparkline" viewBox="0 0 {} 21" preserveAspectRatio="none" role="img" '
        'aria-label="{}"><polyline points="{}"/></svg>'
    ).format(width, label, points)


def chart(
    layers: Sequence[Bars], label: str, step_names: Sequence[str] = (), line: Sequence[int] = ()
) -> Markup:
    """Stacked bars for steps of time, and a line. `label`: the text for screen readers.

    `step_names`: of each step, for the text that a pointer on its bar shows.
    """
    length = max((len(layer.numbers) for layer in layers), default=0)
    totals = [sum(layer.numbers[step] for layer in layers) for step in range(length)]
    top = max([*totals, *line, 1])
    parts = []
    for step, total in enumerate(totals):
        if total:
            parts.append(_bar(layers, step, top, step_names))
    if any(line):
        middle = (BAR_WIDTH - BAR_GAP) / 2
        points = " ".join(
            f"{step * BAR_WIDTH + middle:g},{HEIGHT * (1 - value / top):.1f}"
            for step, value in enumerate(line)
        )
        parts.append(Markup('<polyline points="{}"/>').format(points))
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" '
        'aria-label="{}">{}</svg>'
    ).format(max(length, 1) * BAR_WIDTH, HEIGHT, label, Markup("").join(parts))


def _bar(layers: Sequence[Bars], step: int, top: int, step_names: Sequence[str]) -> Markup:
    x = step * BAR_WIDTH
    base = float(HEIGHT)
    rects = ""
    told = []
    for layer in layers:
        number = layer.numbers[step]
        if not number:
            continue
        told.append(f"{number:,} {layer.name}")
        height = max(HEIGHT * number / top, 1.5)
        base -= height
        rects += (
            f'<rect class="{layer.colour}" x="{x}" y="{max(base, 0):.1f}" '
            f'width="{BAR_WIDTH - BAR_GAP}" height="{height:.1f}"/>'
        )
    name = f"{step_names[step]}: " if step < len(step_names) else ""
    title = escape(name + ", ".join(told))
    return Markup(f"<g><title>{title}</title>{rects}</g>")  # else numbers, our classes  # nosec B704
