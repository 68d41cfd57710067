"""The figure of editing against preservation, as SVG that takes its colours from the page it stands in."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attnctl_evaluation.bootstrap import Interval
from attnctl_evaluation.report.numbers import number, span
from attnctl_evaluation.report.text import clean, cut, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from attnctl_evaluation.report.contents import Contents

MARKERS = "osD^vPXp"
"""Shapes of the methods, in turn; the second time round they are hollow."""

COLOURS = 8
"""Number of colours that the page's style sheet has for methods."""

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_INK, _GRID, _PAPER = "#010101", "#020202", "#030303"
"""Stand-ins, which become classes of the style sheet; `_method_ink` has those of methods."""

_WIDTH, _HEIGHT = 5.0, 3.9
"""Inches; the page shows an inch as about 96 pixels, on a phone as 68."""


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
    summary = contents.summary
    points = []
    for index, label in enumerate(summary.methods):
        across, up = summary.cells[label, x].interval, summary.cells[label, y].interval
        if across is not None and up is not None:
            points.append(Point(index, label, across, up))
    texts: dict[str, str] = {"XLABEL": _axis(x, summary.better[x], "\u2192"), "YLABEL": _axis(y, summary.better[y], "\u2191")}  # fmt: skip # noqa: E501
    texts.update({f"M{p.index}L": cut(one_line(p.label), 30) for p in points})
    svg = _drawn(points, summary.better[x] == "lower", summary.better[y] == "lower")
    title = f"{one_line(y)} against {one_line(x)}"
    words = [
        f"{one_line(p.label)}: {one_line(x)} {_said(p.x, contents.places[x])}; "
        f"{one_line(y)} {_said(p.y, contents.places[y])}"
        for p in points
    ]
    return _inline(svg, texts, name, title, ". ".join(words) or "No method has numbers in both columns")


def _axis(column: str, better: str, arrow: str) -> str:
    return f"{cut(one_line(column), 40)} ({better} is better {arrow})"


def _said(interval: Interval, places: int) -> str:
    ends = span(interval, places)
    return f"{number(interval.mean, places)} {ends}".strip()


def _method_ink(index: int) -> str:
    return f"#04{index % COLOURS:02x}04"


def _drawn(points: Sequence[Point], flip_x: bool, flip_y: bool) -> str:
    """Draw with matplotlib; every text is a stand-in, so that it never measures or parses a stranger's words."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()  # whatever style sheet is installed here
        mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "attnctl"})
        figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=100)
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0.145, 0.135, 0.815, 0.85))
        axes.grid(color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(_INK)
        axes.tick_params(colors=_INK, length=3, labelsize=8.5)
        axes.set_xlabel("XLABEL", color=_INK, fontsize=9.5)
        axes.set_ylabel("YLABEL", color=_INK, fontsize=9.5)
        axes.yaxis.set_label_coords(-0.125, 0.5)
        axes.margins(0.12)
        for point in points:
            _mark(axes, point)
        if flip_x:
            axes.invert_xaxis()
        if flip_y:
            axes.invert_yaxis()
        axes.autoscale_view()
        _label(axes, points)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _mark(axes: Axes, point: Point) -> None:
    x, y, ink = point.x, point.y, _method_ink(point.index)
    hollow = (point.index // COLOURS) % 2 == 1
    axes.errorbar(
        [x.mean], [y.mean],
        xerr=[[x.mean - x.low], [x.high - x.mean]], yerr=[[y.mean - y.low], [y.high - y.mean]],
        fmt=MARKERS[point.index % len(MARKERS)], color=ink, markersize=7, elinewidth=1.3, capsize=0,
        markerfacecolor=_PAPER if hollow else ink, markeredgecolor=ink, markeredgewidth=1.4,
    )  # fmt: skip


def _label(axes: Axes, points: Sequence[Point]) -> None:
    """Write the labels beside their points, pushed apart where they would cover each other."""
    apart, taken = 15.0, list[tuple[float, float]]()
    place = axes.transData.transform
    left, right = axes.get_window_extent().x0, axes.get_window_extent().x1
    for point in sorted(points, key=lambda p: -float(place((p.x.mean, p.y.mean))[1])):
        px, py = (float(v) for v in place((point.x.mean, point.y.mean)))
        width = 6.5 * min(30, len(point.label)) + 12
        flipped = px + width > right and px - width > left
        start = px - width if flipped else px
        height = py + 9
        for ux, uy in sorted(taken, key=lambda t: -t[1]):
            if abs(ux - start) < 110 and abs(uy - height) < apart:
                height = uy - apart
        taken.append((start, height))
        shift = (-8.0 if flipped else 8.0, height - py)
        axes.annotate(
            f"M{point.index}L", (point.x.mean, point.y.mean), shift, textcoords="offset pixels",
            ha="right" if flipped else "left", va="center", color=_method_ink(point.index), fontsize=9.5,
            annotation_clip=False,
        )  # fmt: skip


_STAND_INS: Mapping[str, str] = {_INK: "ink", _GRID: "grid", _PAPER: "paper"} | {
    _method_ink(i): f"m{i}" for i in range(COLOURS)
}


def _inline(svg: str, texts: Mapping[str, str], name: str, title: str, description: str) -> str:
    """Turn matplotlib's file into an element of a page: no styles, own ids, classes for colours, the real texts."""
    ET.register_namespace("", _SVG)
    root = ET.fromstring(svg)  # noqa: S314  (matplotlib wrote it a moment ago)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("style", "metadata", "title"):
                parent.remove(child)
    for element in root.iter():
        _plain_style(element)
        if own := element.attrib.pop("id", ""):
            element.set("id", f"{name}-{own}")
        link = element.attrib.pop(_XLINK, "")
        if link.startswith("#"):
            element.set("href", f"#{name}-{link[1:]}")
        if "clip-path" in element.attrib:
            element.set("clip-path", element.attrib["clip-path"].replace("url(#", f"url(#{name}-"))
        if element.text and element.text in texts:
            element.text = clean(texts[element.text])
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.attrib.pop("version", None)
    root.set("role", "img")
    root.set("class", "figure")
    root.set("aria-labelledby", f"{name}-title {name}-words")
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ET.Element(f"{{{_SVG}}}{tag}", {"id": f"{name}-{'title' if tag == 'title' else 'words'}"})
        element.text = clean(text)
        root.insert(position, element)
    return ET.tostring(root, encoding="unicode")


def _plain_style(element: ET.Element) -> None:
    """Replace a style attribute by attributes and classes; fonts are the page's business."""
    style = element.attrib.pop("style", "")
    classes = []
    pairs = [pair.split(":", 1) for pair in style.split(";") if ":" in pair]
    pairs += [[key, element.attrib[key]] for key in ("fill", "stroke") if key in element.attrib]
    for key, value in ((k.strip(), v.strip()) for k, v in pairs):
        if key in ("fill", "stroke") and value in _STAND_INS:
            element.attrib.pop(key, None)
            classes.append(f"{key}-{_STAND_INS[value]}")
        elif key == "font":
            if size := re.search(r"([\d.]+)px", value):
                element.set("font-size", size[1])
            if "text-anchor" not in element.attrib and "text-anchor" in style:
                continue
        elif key in ("fill", "stroke", "stroke-width", "stroke-linecap", "stroke-linejoin", "stroke-opacity",
                     "stroke-miterlimit", "fill-opacity", "opacity", "text-anchor", "font-size"):  # fmt: skip
            element.set(key, value.removesuffix("px"))
    if classes:
        element.set("class", " ".join(classes))
