"""The outlines of the objects, in a unit square (x to the right, y down)."""

from __future__ import annotations

import math
from typing import NamedTuple

_Point = tuple[float, float]
_Colour = tuple[int, int, int]


class Shape(NamedTuple):
    """One piece of an object.

    Attributes:
        kind: "polygon" (its corners) or "ellipse" (two opposite corners of its box).
        points: Corners in the unit square.
        role: "body" takes the object's colour and pattern and has an outline, "solid" has an outline and
            its own colour, "trim" lies on top in its own colour, "line" is a stroke in the outline's colour.
        colour: sRGB of "solid" and "trim".
    """

    kind: str
    points: tuple[_Point, ...]
    role: str = "body"
    colour: _Colour = (255, 255, 255)


_GLASS, _WHITE, _DARK, _WOOD = (205, 236, 250), (250, 250, 250), (44, 44, 50), (140, 96, 56)


def _polygon(*points: _Point, role: str = "body", colour: _Colour = _WHITE) -> Shape:
    return Shape("polygon", points, role, colour)


def _ellipse(x0: float, y0: float, x1: float, y1: float, role: str = "body", colour: _Colour = _WHITE) -> Shape:
    return Shape("ellipse", ((x0, y0), (x1, y1)), role, colour)


def _rectangle(x0: float, y0: float, x1: float, y1: float, role: str = "body", colour: _Colour = _WHITE) -> Shape:
    return Shape("polygon", ((x0, y0), (x1, y0), (x1, y1), (x0, y1)), role, colour)


def _star() -> tuple[_Point, ...]:
    points = []
    for i in range(10):
        radius = 0.525 if i % 2 == 0 else 0.25
        angle = math.pi * i / 5 - math.pi / 2
        points.append((0.5 + radius * math.cos(angle), 0.53 + radius * math.sin(angle)))
    return tuple(points)


def _heart() -> tuple[_Point, ...]:
    points = []
    for i in range(40):
        t = 2 * math.pi * i / 40
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((0.5 + x / 32.0, (12.0 - y) / 29.0))
    return tuple(points)


def _petals() -> tuple[Shape, ...]:
    shapes = []
    for i in range(6):
        angle = math.pi * i / 3
        x, y = 0.5 + 0.29 * math.cos(angle), 0.36 + 0.235 * math.sin(angle)
        shapes.append(_ellipse(x - 0.2, y - 0.165, x + 0.2, y + 0.165))
    return tuple(shapes)


SHAPES: dict[str, tuple[Shape, ...]] = {
    "car": (
        _polygon((0.2, 0.45), (0.32, 0.0), (0.7, 0.0), (0.86, 0.45)),
        _polygon((0.0, 0.4), (0.9, 0.4), (1.0, 0.52), (1.0, 0.84), (0.0, 0.84)),
        _ellipse(0.1, 0.58, 0.335, 1.0, "solid", _DARK),
        _ellipse(0.665, 0.58, 0.9, 1.0, "solid", _DARK),
        _polygon((0.29, 0.4), (0.37, 0.1), (0.49, 0.1), (0.49, 0.4), role="trim", colour=_GLASS),
        _polygon((0.56, 0.4), (0.56, 0.1), (0.66, 0.1), (0.77, 0.4), role="trim", colour=_GLASS),
        _ellipse(0.17, 0.705, 0.265, 0.875, "trim", (190, 190, 190)),
        _ellipse(0.735, 0.705, 0.83, 0.875, "trim", (190, 190, 190)),
    ),
    "house": (
        _rectangle(0.12, 0.4, 0.88, 1.0),
        _polygon((0.0, 0.42), (0.5, 0.0), (1.0, 0.42), role="solid", colour=(150, 84, 66)),
        _rectangle(0.42, 0.66, 0.6, 1.0, "trim", _DARK),
        _rectangle(0.2, 0.54, 0.36, 0.72, "trim", _GLASS),
        _rectangle(0.66, 0.54, 0.82, 0.72, "trim", _GLASS),
    ),
    "tree": (
        _rectangle(0.4, 0.6, 0.6, 1.0, "solid", _WOOD),
        _polygon((0.5, 0.0), (0.87, 0.42), (0.13, 0.42)),
        _polygon((0.5, 0.18), (1.0, 0.76), (0.0, 0.76)),
    ),
    "fish": (
        _polygon((0.62, 0.5), (1.0, 0.1), (1.0, 0.9)),
        _ellipse(0.0, 0.06, 0.8, 0.94),
        _ellipse(0.12, 0.3, 0.25, 0.5, "trim", _WHITE),
        _ellipse(0.155, 0.35, 0.22, 0.45, "trim", _DARK),
    ),
    "boat": (
        _rectangle(0.455, 0.0, 0.53, 0.7, "solid", _WOOD),
        _polygon((0.56, 0.06), (0.92, 0.6), (0.56, 0.6)),
        _polygon((0.42, 0.16), (0.42, 0.6), (0.12, 0.6)),
        _polygon((0.0, 0.68), (1.0, 0.68), (0.8, 1.0), (0.2, 1.0)),
    ),
    "flower": (
        _rectangle(0.45, 0.5, 0.55, 1.0, "solid", (60, 140, 60)),
        _ellipse(0.52, 0.78, 0.82, 0.93, "solid", (60, 140, 60)),
        *_petals(),
        _ellipse(0.34, 0.228, 0.66, 0.492, "trim", (255, 236, 120)),
    ),
    "mushroom": (
        _polygon((0.34, 0.5), (0.66, 0.5), (0.72, 1.0), (0.28, 1.0), role="solid", colour=(244, 236, 216)),
        _polygon(
            (0.0, 0.58), (0.02, 0.42), (0.09, 0.26), (0.2, 0.12), (0.35, 0.03), (0.5, 0.0),
            (0.65, 0.03), (0.8, 0.12), (0.91, 0.26), (0.98, 0.42), (1.0, 0.58),
        ),
    ),
    "ball": (
        _ellipse(0.0, 0.0, 1.0, 1.0),
        _ellipse(0.2, 0.13, 0.42, 0.31, "trim", _WHITE),
    ),
    "star": (Shape("polygon", _star()),),
    "heart": (Shape("polygon", _heart()),),
    "cat": (
        _polygon((0.06, 0.5), (0.08, 0.0), (0.46, 0.24)),
        _polygon((0.94, 0.5), (0.92, 0.0), (0.54, 0.24)),
        _ellipse(0.0, 0.16, 1.0, 1.0),
        _ellipse(0.2, 0.42, 0.4, 0.64, "trim", _WHITE),
        _ellipse(0.6, 0.42, 0.8, 0.64, "trim", _WHITE),
        _ellipse(0.265, 0.47, 0.355, 0.6, "trim", _DARK),
        _ellipse(0.645, 0.47, 0.735, 0.6, "trim", _DARK),
        _polygon((0.42, 0.7), (0.58, 0.7), (0.5, 0.8), role="trim", colour=(240, 130, 150)),
    ),
    "bird": (
        _polygon((0.84, 0.22), (1.0, 0.34), (0.84, 0.42), role="solid", colour=(250, 180, 40)),
        _polygon((0.0, 0.36), (0.4, 0.5), (0.3, 0.8)),
        _ellipse(0.14, 0.34, 0.82, 0.98),
        _ellipse(0.5, 0.0, 0.92, 0.54),
        _ellipse(0.7, 0.14, 0.82, 0.28, "trim", _WHITE),
        _ellipse(0.74, 0.17, 0.8, 0.25, "trim", _DARK),
    ),
}  # fmt: skip
"""The pieces of each object, painted in order."""
