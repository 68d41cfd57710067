"""Draw scenes with Pillow, at three times the size and then reduced."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from attnctl_evaluation.world.colours import COLOURS, to_lab
from attnctl_evaluation.world.scene import BACKGROUNDS, Scene, Thing
from attnctl_evaluation.world.shapes import SHAPES, Shape

SIZE = 128
"""Width and height of a picture in pixels, the size that ``micro`` is trained on."""

_OVER = 3
_DARK, _LIGHT = (44, 44, 50), (206, 206, 212)

_GROUND: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "grass": ((150, 208, 250), (96, 178, 72)),
    "snow": ((176, 192, 214), (232, 238, 246)),
    "sea": ((170, 220, 252), (40, 112, 190)),
    "desert": ((252, 224, 160), (222, 178, 98)),
    "night": ((28, 30, 74), (38, 56, 58)),
    "road": ((190, 206, 224), (92, 92, 98)),
}
"""Sky and ground of each background."""


def _backdrop(draw: ImageDraw.ImageDraw, background: str, horizon: int, side: int) -> None:
    """Draw what tells the backgrounds apart besides their colours; `horizon` and `side` in pixels."""
    u = side / 128
    if background == "night":
        draw.ellipse((100 * u, 8 * u, 118 * u, 26 * u), fill=(248, 240, 190))
        for x, y in ((14, 12), (38, 24), (62, 9), (84, 28), (22, 42)):
            draw.ellipse(((x - 1.5) * u, (y - 1.5) * u, (x + 1.5) * u, (y + 1.5) * u), fill=(250, 250, 220))
    elif background == "road":
        middle = (horizon + 3 * side) / 4
        for x in (4, 48, 92):
            draw.rectangle((x * u, middle - 2.5 * u, (x + 24) * u, middle + 2.5 * u), fill=(245, 245, 235))
    elif background == "sea":
        for row, wave in enumerate((horizon + 12 * u, horizon + 28 * u)):
            for x in range(8 + 20 * row, 128, 44):
                draw.rectangle((x * u, wave - 1.2 * u, (x + 18) * u, wave + 1.2 * u), fill=(150, 196, 236))
    elif background == "desert":
        draw.ellipse((8 * u, 6 * u, 28 * u, 26 * u), fill=(255, 246, 214))
    elif background == "snow":
        for x, y in ((12, 16), (34, 34), (52, 10), (78, 26), (100, 12), (116, 38), (20, 58), (94, 52)):
            draw.ellipse(((x - 2) * u, (y - 2) * u, (x + 2) * u, (y + 2) * u), fill=(250, 252, 255))
    else:
        draw.ellipse((96 * u, 6 * u, 118 * u, 28 * u), fill=(255, 232, 90))


@lru_cache(maxsize=64)
def _contrast(colour: str) -> tuple[int, int, int]:
    """The colour of stripes and dots: the same hue, clearly lighter or darker."""
    rgb = np.array(COLOURS[colour], dtype=np.float64)
    toward = 255.0 if float(to_lab(rgb)[0]) < 58 else 0.0
    share = 0.62 if toward else 0.5
    red, green, blue = (int(v) for v in rgb * (1 - share) + toward * share)
    return red, green, blue


def outline_of(colour: str) -> tuple[int, int, int]:
    """Give the outline of an object of some colour: light around dark colours, else dark."""
    return _LIGHT if float(to_lab(np.array(COLOURS[colour]))[0]) < 24 else _DARK


def _coat(thing: Thing, width: int, height: int, unit: float) -> Image.Image:
    """Paint the object's colour and pattern over a rectangle of `width` x `height` pixels."""
    coat = Image.new("RGB", (width, height), COLOURS[thing.colour])
    if thing.pattern == "plain":
        return coat
    draw, mark = ImageDraw.Draw(coat), _contrast(thing.colour)
    step = 13 * unit
    if thing.pattern == "striped":
        for i in range(int(width / step) + 1):
            draw.rectangle((i * step + step * 0.3, 0, i * step + step * 0.72, height), fill=mark)
    else:
        radius = 3.6 * unit
        for row in range(int(height / step) + 2):
            for column in range(-1, int(width / step) + 2):
                x = (column + 0.5 * (row % 2) + 0.4) * step
                y = (row + 0.4) * step
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=mark)
    return coat


def _paint(draw: ImageDraw.ImageDraw, shape: Shape, box: tuple[float, ...], fill: object, grow: float = 0.0) -> None:
    """Draw one shape of an object's unit square into `box` (left, top, width, height)."""
    left, top, width, height = box
    points = [(left + x * width, top + y * height) for x, y in shape.points]
    if shape.kind == "ellipse":
        (x0, y0), (x1, y1) = points
        draw.ellipse((x0 - grow, y0 - grow, x1 + grow, y1 + grow), fill=fill)  # type: ignore[arg-type]
        return
    draw.polygon(points, fill=fill)  # type: ignore[arg-type]
    if grow:
        draw.line([*points, points[0], points[1]], fill=fill, width=math.ceil(2 * grow), joint="curve")  # type: ignore[arg-type]


def _draw_thing(picture: Image.Image, thing: Thing, side: int) -> None:
    unit = side / 128
    left, top, right, bottom = (v * side for v in thing.box)
    # The outline belongs to the object: shapes are drawn smaller by its width, so that it stays in the box.
    grow = 1.5 * unit
    box = (left + grow, top + grow, right - left - 2 * grow, bottom - top - 2 * grow)
    draw = ImageDraw.Draw(picture)
    shapes = SHAPES[thing.object]
    outline = outline_of(thing.colour)
    for shape in shapes:
        if shape.role in ("body", "solid"):
            _paint(draw, shape, box, outline, grow)
    width, height = math.ceil(box[2]) + 2, math.ceil(box[3]) + 2
    coat = _coat(thing, width, height, unit)
    for shape in shapes:
        if shape.role == "body":
            mask = Image.new("L", (width, height), 0)
            _paint(ImageDraw.Draw(mask), shape, (0.0, 0.0, box[2], box[3]), 255)
            picture.paste(coat, (round(box[0]), round(box[1])), mask)
        elif shape.role == "line":
            points = [(box[0] + x * box[2], box[1] + y * box[3]) for x, y in shape.points]
            draw.line(points, fill=outline, width=math.ceil(1.6 * unit), joint="curve")
        else:
            _paint(draw, shape, box, shape.colour)


@lru_cache(maxsize=256)
def _ground(background: str, horizon: int, side: int) -> Image.Image:
    sky, ground = _GROUND[background]
    picture = Image.new("RGB", (side, side), sky)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, horizon, side, side), fill=ground)
    _backdrop(draw, background, horizon, side)
    return picture


def render(scene: Scene, size: int = SIZE) -> Image.Image:
    """Draw a scene.

    Args:
        scene: What to draw.
        size: Width and height in pixels, from 16 up.

    Returns:
        An RGB picture. The same scene gives the same bytes.
    """
    assert scene.background in BACKGROUNDS
    side = size * _OVER
    # The horizon lies on a whole output pixel, which keeps the number of different backdrops small.
    picture = _ground(scene.background, round(scene.horizon * size) * _OVER, side).copy()
    for thing in scene.things:
        _draw_thing(picture, thing, side)
    return picture.reduce(_OVER)


def object_mask(scene: Scene, index: int = 0, size: int = SIZE) -> np.ndarray:
    """Say where an object is, its outline included.

    Args:
        scene: The scene.
        index: Which of its things.
        size: Width and height in pixels.

    Returns:
        Booleans, shape (size, size): true where the object covers at least half of a pixel.
    """
    side = size * _OVER
    thing = scene.things[index]
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    left, top, right, bottom = (v * side for v in thing.box)
    grow = 1.5 * side / 128
    box = (left + grow, top + grow, right - left - 2 * grow, bottom - top - 2 * grow)
    for shape in SHAPES[thing.object]:
        if shape.role in ("body", "solid"):
            _paint(draw, shape, box, 255, grow)
    return np.asarray(mask.reduce(_OVER)) >= 128


def change_mask(before: Scene, after: Scene, size: int = SIZE) -> np.ndarray:
    """Say which pixels an exact edit changes.

    Args:
        before: The source scene.
        after: The edited scene.
        size: Width and height in pixels.

    Returns:
        Booleans, shape (size, size): true where the two pictures differ.
    """
    first, second = np.asarray(render(before, size)), np.asarray(render(after, size))
    return np.asarray((first != second).any(axis=-1))
