"""The figure of editing against preservation, as SVG that takes its colours from the page it stands in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnctl_evaluation.bootstrap import Interval
from attnctl_evaluation.report.numbers import number, span
from attnctl_evaluation.report.text import clean, cut, one_line

if TYPE_CHECKING:
    from attnctl_evaluation.report.contents import Contents

SHAPES = (
    '<circle r="4.6"/>', '<rect x="-4.2" y="-4.2" width="8.4" height="8.4"/>', '<path d="M0-5.6 5.6 0 0 5.6-5.6 0z"/>',
    '<path d="M0-5 5 4.4H-5z"/>', '<path d="M0 5 5-4.4H-5z"/>',
    '<path d="M-1.8-5h3.6v3.2H5v3.6H1.8V5h-3.6V1.8H-5v-3.6h3.2z"/>',
    '<path d="M-5-2.6-2.6-5 0-2.4 2.6-5 5-2.6 2.4 0 5 2.6 2.6 5 0 2.4-2.6 5-5 2.6-2.4 0z"/>',
    '<path d="M0-5.2 5-1.6 3.1 4.4H-3.1L-5-1.6z"/>',
)  # fmt: skip
"""Shapes of the methods, in turn; the second time round they are hollow."""

COLOURS = 8
"""Number of colours that the page's style sheet has for methods."""


@dataclass(frozen=True)
class Point:
    """A method in the figure.

    Attributes:
        index: Its place among the methods, which decides shape and colour.
        label: Its label.
        x: Preservation.
        y: Editing.
    """

    index: int
    label: str
    x: Interval
    y: Interval


_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 346.0, 4.0, 243.0
"""The axes within the view box of the template."""


@dataclass(frozen=True)
class _Scale:
    """A linear axis: the number `low` is at `start`, `high` at `end`."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, intervals: Sequence[Interval], start: float, end: float) -> _Scale:
        """Return a scale that leaves a margin on both sides."""
        low, high = min((i.low for i in intervals), default=0.0), max((i.high for i in intervals), default=1.0)
        margin = 0.12 * (high - low) or 0.05 * abs(low) or 0.5
        return cls(low - margin, high + margin, start, end)

    def at(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 2)

    def ticks(self, wanted: int = 9) -> list[tuple[float, str]]:
        """Return place and text of at most `wanted` + 1 round numbers."""
        rough = (self.high - self.low) / wanted
        power = math.floor(math.log10(rough))
        steps = ((m * 10.0**power, digits - power) for m, digits in ((1, 0), (2, 0), (2.5, 1), (5, 0), (10, -1)))
        step, places = next((step, max(0, digits)) for step, digits in steps if step >= rough * (1 - 1e-9))
        numbers = range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
        return [(self.at(n * step), f"{n * step:.{places}f}".replace("-", "\u2212")) for n in numbers]


def scatter(contents: Contents, x: str, y: str, *, name: str) -> str:
    """Draw two columns against each other, intervals as bars, better always towards the upper right.

    Args:
        contents: The report.
        x: Column of the horizontal axis.
        y: Column of the vertical axis.
        name: Prefix of ids in the SVG; must differ between the figures of one page.

    Returns:
        An ``svg`` element with title and description; it holds no style that a content security policy could refuse.
    """
    from jinja2 import Environment, PackageLoader

    summary = contents.summary
    points = []
    for index, label in enumerate(summary.methods):
        across, up = summary.cells[label, x].interval, summary.cells[label, y].interval
        if across is not None and up is not None:
            points.append(Point(index, label, across, up))
    ends = (_RIGHT, _LEFT) if summary.better[x] == "lower" else (_LEFT, _RIGHT)
    rises = (_TOP, _BOTTOM) if summary.better[y] == "lower" else (_BOTTOM, _TOP)
    across_scale, up_scale = _Scale.around([p.x for p in points], *ends), _Scale.around([p.y for p in points], *rises)
    words = [
        f"{one_line(p.label)}: {one_line(x)} {_said(p.x, contents.places[x])}; "
        f"{one_line(y)} {_said(p.y, contents.places[y])}"
        for p in points
    ]
    environment = Environment(loader=PackageLoader("attnctl_evaluation.report"), autoescape=True, trim_blocks=True)
    return environment.get_template("scatter.svg.j2").render(
        name=name,
        title=clean(f"{one_line(y)} against {one_line(x)}"),
        words=clean(". ".join(words) or "No method has numbers in both columns"),
        x_axis=clean(_axis(x, summary.better[x], "\u2192")),
        y_axis=clean(_axis(y, summary.better[y], "\u2191")),
        across=across_scale.ticks(),
        up=up_scale.ticks(),
        marks=_marks(points, across_scale, up_scale),
        left=_LEFT,
        right=_RIGHT,
        top=_TOP,
        bottom=_BOTTOM,
    )


def _axis(column: str, better: str, arrow: str) -> str:
    return f"{cut(one_line(column), 40)} ({better} is better {arrow})"


def _said(interval: Interval, places: int) -> str:
    ends = span(interval, places)
    return f"{number(interval.mean, places)} {ends}".strip()


def _marks(points: Sequence[Point], across: _Scale, up: _Scale) -> list[dict[str, Any]]:
    """Place the marks, and the labels beside them, pushed apart where they would cover each other."""
    from markupsafe import Markup

    apart, taken, marks = 11.0, list[tuple[float, float]](), list[dict[str, Any]]()
    for point in sorted(points, key=lambda p: up.at(p.y.mean)):
        px, py = across.at(point.x.mean), up.at(point.y.mean)
        label = clean(cut(one_line(point.label), 30))
        width = 4.7 * len(label) + 9
        flipped = px + width > _RIGHT and px - width > _LEFT
        start, height = px - width if flipped else px, py - 9
        for ux, uy in sorted(taken, key=lambda t: t[1]):
            if abs(ux - start) < 80 and abs(uy - height) < apart:
                height = uy + apart
        taken.append((start, height))
        marks.append(
            {
                "x": px, "x0": across.at(point.x.low), "x1": across.at(point.x.high),
                "y": py, "y0": up.at(point.y.low), "y1": up.at(point.y.high),
                "ink": point.index % COLOURS, "hollow": (point.index // COLOURS) % 2 == 1,
                "shape": Markup(SHAPES[point.index % len(SHAPES)]),  # noqa: S704  (ours)
                "label": label,
                "anchor": "end" if flipped else "start",
                "text_x": px - 8 if flipped else px + 8, "text_y": round(height + 3, 2),
            }
        )  # fmt: skip
    return marks
