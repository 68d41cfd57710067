"""Scenes as frozen data: what is in a picture, and what an edit changes."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from typing import Any

from attnctl_evaluation.world.colours import COLOURS

OBJECTS: tuple[str, ...] = (
    "car", "house", "tree", "fish", "boat", "flower",
    "mushroom", "ball", "star", "heart", "cat", "bird",
)  # fmt: skip
PATTERNS: tuple[str, ...] = ("plain", "striped", "dotted")
BACKGROUNDS: tuple[str, ...] = ("grass", "snow", "sea", "desert", "night", "road")

ASPECT: dict[str, float] = {
    "car": 0.56, "house": 0.95, "tree": 1.2, "fish": 0.66, "boat": 0.95, "flower": 1.15,
    "mushroom": 1.0, "ball": 1.0, "star": 0.97, "heart": 0.92, "cat": 1.0, "bird": 0.85,
}  # fmt: skip
"""Height of an object divided by its width."""


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object of a scene.

    Attributes:
        object: A word of `OBJECTS`.
        colour: A word of `COLOURS`.
        pattern: A word of `PATTERNS`.
        x: Centre of the object, as a fraction of the picture's width.
        y: Bottom of the object, as a fraction of the picture's height from the top.
        size: Width of the object, as a fraction of the picture's width.
    """

    object: str
    colour: str
    pattern: str = "plain"
    x: float = 0.5
    y: float = 0.8
    size: float = 0.5

    def __post_init__(self) -> None:
        for value, known, noun in (
            (self.object, OBJECTS, "object"),
            (self.colour, tuple(COLOURS), "colour"),
            (self.pattern, PATTERNS, "pattern"),
        ):
            if value not in known:
                raise ValueError(f"no {noun} is called {value!r}; known: {', '.join(known)}")
        if not 0.05 <= self.size <= 1.0:
            raise ValueError(f"size is {self.size}, it must lie between 0.05 and 1")

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom as fractions of the picture."""
        height = self.size * ASPECT[self.object]
        return (self.x - self.size / 2, self.y - height, self.x + self.size / 2, self.y)


@dataclasses.dataclass(frozen=True)
class Scene:
    """A picture's content.

    Attributes:
        background: A word of `BACKGROUNDS`.
        things: One or two objects, the left one first.
        horizon: Where the ground begins, as a fraction of the height from the top.
    """

    background: str
    things: tuple[Thing, ...]
    horizon: float = 0.6

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise ValueError(f"no background is called {self.background!r}; known: {', '.join(BACKGROUNDS)}")
        if not 1 <= len(self.things) <= 2:
            raise ValueError(f"a scene has one or two things, not {len(self.things)}")

    @property
    def main(self) -> Thing:
        """The first thing."""
        return self.things[0]

    def replace_attribute(self, index: int = 0, **changes: Any) -> Scene:
        """Change attributes of one thing, or of the scene, and keep everything else.

        Args:
            index: Which thing the attributes `object`, `colour`, `pattern`, `x`, `y`, `size` belong to.
            **changes: The new values; `background` and `horizon` belong to the scene.

        Returns:
            The edited scene.

        Raises:
            ValueError: An attribute or its value is unknown.
        """
        of_scene = {k: v for k, v in changes.items() if k in ("background", "horizon")}
        of_thing = {k: v for k, v in changes.items() if k not in of_scene}
        known = {field.name for field in dataclasses.fields(Thing)}
        unknown = sorted(set(of_thing) - known)
        if unknown:
            names = ", ".join(sorted(known | {"background", "horizon"}))
            raise ValueError(f"no attribute is called {unknown[0]!r}; known: {names}")
        things = list(self.things)
        things[index] = dataclasses.replace(things[index], **of_thing)
        return dataclasses.replace(self, things=tuple(things), **of_scene)


def edit(scene: Scene, index: int = 0, **changes: Any) -> Scene:
    """Give the scene after an exact edit; see `Scene.replace_attribute`."""
    return scene.replace_attribute(index, **changes)


def is_held_out(scene: Scene, *, share: float = 0.1) -> bool:
    """Say whether a scene belongs to the held-out split, on which nothing is ever trained.

    A scene is held out when one of its combinations of object, colour, pattern and background is.
    The choice is a hash, the same everywhere.

    Args:
        scene: Any scene.
        share: Part of the combinations that is held out, from 0 to 1.
    """
    for thing in scene.things:
        key = f"{thing.object}|{thing.colour}|{thing.pattern}|{scene.background}"
        if int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") < share * 2**32:
            return True
    return False


_GROUNDED = frozenset({"car", "house", "tree", "boat", "flower", "mushroom", "cat"})


def _place(rng: random.Random, name: str, *, x: tuple[float, float], size: tuple[float, float]) -> dict[str, float]:
    width = rng.uniform(*size)
    height = width * ASPECT[name]
    if name in _GROUNDED:
        bottom = rng.uniform(max(0.72, height + 0.04), max(0.9, height + 0.06))
    else:
        bottom = rng.uniform(height + 0.08, max(0.9, height + 0.1))
    left, right = x[0] + width / 2, x[1] - width / 2
    return {
        "x": round(rng.uniform(left, max(left, right)), 4),
        "y": round(min(bottom, 0.96), 4),
        "size": round(width, 4),
    }


def random_scene(rng: random.Random, *, two: float = 0.2, held_out: bool | None = None, plain: float = 0.5) -> Scene:
    """Draw a scene by chance.

    Args:
        rng: Source of chance; the same state gives the same scene.
        two: Probability of two objects.
        held_out: True for the held-out split only, False for the training split only, None for any.
        plain: Probability of the plain pattern.

    Returns:
        A scene whose objects lie inside the picture and do not overlap.
    """
    while True:
        background = rng.choice(BACKGROUNDS)
        horizon = round(rng.uniform(0.5, 0.68), 4)
        count = 2 if rng.random() < two else 1
        names = rng.sample(OBJECTS, count)
        things = []
        for i, name in enumerate(names):
            colour = rng.choice(tuple(COLOURS))
            pattern = "plain" if rng.random() < plain else rng.choice(PATTERNS[1:])
            if count == 1:
                place = _place(rng, name, x=(0.03, 0.97), size=(0.42, 0.7))
            else:
                place = _place(rng, name, x=(0.02 + 0.49 * i, 0.49 + 0.49 * i), size=(0.38, 0.46))
            things.append(Thing(name, colour, pattern, **place))
        scene = Scene(background, tuple(things), horizon)
        if held_out is None or is_held_out(scene) == held_out:
            return scene
