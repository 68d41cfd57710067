"""One maker of edits for each edit type: which change of a drawn scene stands for it.

| type | change |
| --- | --- |
| random | two attributes at once, of colour, object, pattern and background |
| change-object | another object in the same place, as wide, in the same colour and pattern |
| add-object, delete-object | a second object appears beside the first, or goes |
| change-content | the one object grows from small to big, or shrinks |
| change-pose | the one object moves from the left to the right, or back |
| change-colour | another colour word, not one of the two nearest shades |
| change-material | another pattern: plain, striped, dotted |
| change-background | another place by day |
| change-style | a place by day becomes night, which changes the whole picture |
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from attnctl_evaluation.world import (
    BACKGROUNDS,
    COLOURS,
    NEIGHBOURS,
    OBJECTS,
    PATTERNS,
    Scene,
    Thing,
    is_held_out,
    random_scene,
)
from attnctl_evaluation.world.captions import PLACES, article, plain_caption
from attnctl_evaluation.world.scene import ASPECT

DAY: tuple[str, ...] = tuple(b for b in BACKGROUNDS if b != "night")
_MARGIN = 0.02
"""Smallest distance of an object from the top of the picture."""


@dataclass(frozen=True)
class WorldEdit:
    """An exact edit of a scene.

    Attributes:
        before: The source scene.
        after: The edited scene.
        source_prompt: What the source shows.
        prompt: What the edited picture shows.
        words: Words of (source, target) that the edit is about.
        edited: What changes, in terms of the edited scene: ``0.colour``, ``1.object``, ``0.place``, ``background``,
            ``count``.
        things: Pairs of indices (before, after) of things that are in both scenes.
        instruction: The edit as an instruction.
    """

    before: Scene
    after: Scene
    source_prompt: str
    prompt: str
    words: tuple[str, str]
    edited: tuple[str, ...]
    things: tuple[tuple[int, int], ...]
    instruction: str


Maker = Callable[[random.Random, bool], WorldEdit]


def _change(before: Scene, index: int, instruction: str, **changes: str) -> WorldEdit:
    """Edit attributes of one thing, or the background, and describe it."""
    after = before.replace_attribute(index, **changes)
    edited = tuple(name if name == "background" else f"{index}.{name}" for name in changes)
    words = (before.things[index].object, after.things[index].object)
    if set(changes) == {"background"}:
        words = (_place_word(before.background), _place_word(after.background))
    pairs = tuple((i, i) for i in range(len(before.things)))
    return WorldEdit(before, after, plain_caption(before), plain_caption(after), words, edited, pairs, instruction)


def _place_word(background: str) -> str:
    return PLACES[background][0].split()[-1]


def _scene(rng: random.Random, held_out: bool, two: float, backgrounds: tuple[str, ...] = BACKGROUNDS) -> Scene:
    while True:
        scene = random_scene(rng, two=two, held_out=True if held_out else None)
        if scene.background in backgrounds:
            return scene


def _other_object(rng: random.Random, scene: Scene, index: int) -> str:
    """Choose an object that no thing of the scene is and that fits in the place of one of them."""
    thing, there = scene.things[index], {t.object for t in scene.things}
    return rng.choice([o for o in OBJECTS if o not in there and thing.y - thing.size * ASPECT[o] >= _MARGIN])


def _other_colour(rng: random.Random, thing: Thing) -> str:
    return rng.choice([c for c in COLOURS if c != thing.colour and c not in NEIGHBOURS[thing.colour]])


def _object(rng: random.Random, held_out: bool) -> WorldEdit:
    scene = _scene(rng, held_out, 0.4)
    index = rng.randrange(len(scene.things))
    new = _other_object(rng, scene, index)
    return _change(scene, index, f"turn the {scene.things[index].object} into {article(new)}", object=new)


def _colour(rng: random.Random, held_out: bool) -> WorldEdit:
    scene = _scene(rng, held_out, 0.4)
    index = rng.randrange(len(scene.things))
    thing = scene.things[index]
    new = _other_colour(rng, thing)
    return _change(scene, index, f"make the {thing.object} {new}", colour=new)


def _material(rng: random.Random, held_out: bool) -> WorldEdit:
    scene = _scene(rng, held_out, 0.4)
    index = rng.randrange(len(scene.things))
    thing = scene.things[index]
    new = rng.choice([p for p in PATTERNS if p != thing.pattern])
    return _change(scene, index, f"make the {thing.object} {new}", pattern=new)


def _background(rng: random.Random, held_out: bool) -> WorldEdit:
    scene = _scene(rng, held_out, 0.2, DAY)
    new = rng.choice([b for b in DAY if b != scene.background])
    return _change(scene, 0, f"put it {PLACES[new][0]}", background=new)


def _style(rng: random.Random, held_out: bool) -> WorldEdit:
    return _change(_scene(rng, held_out, 0.2, DAY), 0, "make it night", background="night")


def _random(rng: random.Random, held_out: bool) -> WorldEdit:
    scene = _scene(rng, held_out, 0.2)
    thing = scene.main
    options = {
        "object": _other_object(rng, scene, 0),
        "colour": _other_colour(rng, thing),
        "pattern": rng.choice([p for p in PATTERNS if p != thing.pattern]),
        "background": rng.choice([b for b in BACKGROUNDS if b != scene.background]),
    }
    chosen = sorted(rng.sample(sorted(options), 2))
    said = " and ".join(f"its {name} to {options[name]}" for name in chosen)
    made = _change(scene, 0, f"change {said}", **{name: options[name] for name in chosen})
    return dataclasses.replace(made, words=(made.before.main.object, made.after.main.object))


def _fewer(rng: random.Random, held_out: bool) -> tuple[Scene, Scene, int]:
    """Return a scene with two things, the same without one of them, and the index of the one that is gone."""
    while True:
        both = random_scene(rng, two=1.0, held_out=True if held_out else None)
        gone = rng.randrange(2)
        one = dataclasses.replace(both, things=(both.things[1 - gone],))
        # Deleting may leave a combination that was trained on: either picture can be the source, so both are held out.
        if not held_out or is_held_out(one):
            return both, one, gone


def _delete(rng: random.Random, held_out: bool) -> WorldEdit:
    both, one, gone = _fewer(rng, held_out)
    name = both.things[gone].object
    return WorldEdit(
        both, one, plain_caption(both), plain_caption(one), (name, ""), ("count",), ((1 - gone, 0),),
        f"remove the {name}",
    )  # fmt: skip


def _add(rng: random.Random, held_out: bool) -> WorldEdit:
    both, one, new = _fewer(rng, held_out)
    thing = both.things[new]
    edited = ("count", f"{new}.object", f"{new}.colour", f"{new}.pattern")
    return WorldEdit(
        one, both, plain_caption(one), plain_caption(both), ("", thing.object), edited, ((0, 1 - new),),
        f"add {article(f'{thing.colour} {thing.object}')}",
    )  # fmt: skip


def _sized(scene: Scene, word: str) -> str:
    """Say the plain caption with a word for the size, where the world's captions have it."""
    first, rest = plain_caption(scene).split(" ", 1)
    assert first in ("a", "an")
    return f"a {word} {rest}"


def _content(rng: random.Random, held_out: bool) -> WorldEdit:
    while True:
        big = _scene(rng, held_out, 0.0)
        if big.main.size > 0.6:
            break
    small = dataclasses.replace(big, things=(dataclasses.replace(big.main, size=round(rng.uniform(0.42, 0.48), 4)),))
    before, after, words = (small, big, ("small", "big")) if rng.random() < 0.5 else (big, small, ("big", "small"))
    return WorldEdit(
        before, after, _sized(before, words[0]), _sized(after, words[1]), words, ("0.place",), ((0, 0),),
        f"make the {before.main.object} {words[1]}",
    )  # fmt: skip


def _placed(scene: Scene, side: str) -> str:
    """Say the plain caption with the side that the one object is on, where the world's captions have it."""
    return f"{plain_caption(scene, background=False)} on the {side} {PLACES[scene.background][0]}"


def _pose(rng: random.Random, held_out: bool) -> WorldEdit:
    while True:
        scene = _scene(rng, held_out, 0.0)
        if scene.main.size < 0.56 and not 0.4 <= scene.main.x <= 0.6:
            break
    moved = dataclasses.replace(scene, things=(dataclasses.replace(scene.main, x=round(1 - scene.main.x, 4)),))
    sides = ("left", "right") if scene.main.x < 0.5 else ("right", "left")
    return WorldEdit(
        scene, moved, _placed(scene, sides[0]), _placed(moved, sides[1]), sides, ("0.place",), ((0, 0),),
        f"move the {scene.main.object} to the {sides[1]}",
    )  # fmt: skip


MAKERS: Mapping[str, Maker] = {
    "random": _random,
    "change-object": _object,
    "add-object": _add,
    "delete-object": _delete,
    "change-content": _content,
    "change-pose": _pose,
    "change-colour": _colour,
    "change-material": _material,
    "change-background": _background,
    "change-style": _style,
}
"""What makes an edit of each type: takes a source of chance and whether the source scene must be held out."""
